//! The kernel's reasons as the mesh's: [`from_kernel`].

use ambit_core::Reason;
use ambit_loader::KernelReason;

/// The reason that logs and metrics show for the kernel's.
pub(crate) const fn from_kernel(reason: KernelReason) -> Reason {
    match reason {
        KernelReason::OutboundListenerMissing => Reason::OutboundListenerMissing,
        KernelReason::HandoffsExhausted => Reason::HandoffsExhausted,
        KernelReason::KernelMemory => Reason::KernelMemory,
        KernelReason::PodUnknown => Reason::PodUnknown,
        KernelReason::HboneListenerMissing => Reason::HboneListenerMissing,
        KernelReason::PlaintextListenerMissing => Reason::PlaintextListenerMissing,
        KernelReason::PlaintextRefused => Reason::PlaintextRefused,
        KernelReason::HandoffLost => Reason::HandoffLost,
        KernelReason::FlowStale => Reason::FlowStale,
        KernelReason::FlowMisdirected => Reason::FlowMisdirected,
        KernelReason::FlowsExhausted => Reason::FlowsExhausted,
        KernelReason::FlowTaken => Reason::FlowTaken,
        KernelReason::FlowGone => Reason::FlowGone,
        KernelReason::RecordLost => Reason::RecordLost,
        KernelReason::LinkLost => Reason::LinkLost,
        KernelReason::LinkHandshakeForged => Reason::LinkHandshakeForged,
        KernelReason::LinkPacketForged => Reason::LinkPacketForged,
        KernelReason::LinkPacketHidden => Reason::LinkPacketHidden,
        KernelReason::LinkNeighbourForged => Reason::LinkNeighbourForged,
        KernelReason::ProbesExhausted => Reason::ProbesExhausted,
        KernelReason::DeviceBound => Reason::DeviceBound,
        KernelReason::Reset => Reason::Reset,
        KernelReason::Closed => Reason::Closed,
    }
}
