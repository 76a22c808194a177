//! `sk_lookup`: which socket gets a connection that arrives at an enrolled pod. The program is loaded once
//! for each pod, with the network namespace's cookie in read-only data: the helper that returns the cookie is
//! not available in this hook.

use ambit_abi::{
    Address, FlowEntry, HBONE_PORT, HandoffKey, InboundMode, KernelReason, Lease, ListenerKey, ListenerSlot,
    NetnsCookie, Path, Pod, PortKey, Role, SocketAddress, Tuple, WorkloadNumber,
};
use aya_ebpf::Global;
use aya_ebpf::bindings::bpf_sk_lookup;
use aya_ebpf::bindings::sk_action::{SK_DROP, SK_PASS};
use aya_ebpf::macros::sk_lookup;
use aya_ebpf::programs::SkLookupContext;

use crate::context::{address, field};
use crate::log::decision;
use crate::maps::{FLOWS, HANDOFFS, LISTENERS, PODS, PORTS};
use crate::records::{self, Refused, probable_workload};
use crate::{flows, links, probes, verdicts};

/// The cookie of the pod's network namespace, written when the program is loaded.
#[unsafe(no_mangle)]
static NETNS_COOKIE: Global<u64> = Global::new(0);

const AF_INET: u32 = 2;
const IPPROTO_TCP: u32 = 6;
/// Index of the loopback device in every network namespace.
const LOOPBACK_DEVICE: u32 = 1;

#[sk_lookup]
pub fn inbound(context: SkLookupContext) -> u32 {
    match decide(&context) {
        Ok(()) => SK_PASS,
        Err(reason) => {
            refuse(&context, reason);
            SK_DROP
        }
    }
}

#[inline(always)]
fn decide(context: &SkLookupContext) -> Result<(), KernelReason> {
    let lookup = context.lookup;
    // SAFETY: fields of this hook's context.
    let (protocol, family, port, interface) = unsafe {
        (
            field!(lookup, bpf_sk_lookup.protocol),
            field!(lookup, bpf_sk_lookup.family),
            field!(lookup, bpf_sk_lookup.local_port) as u16,
            field!(lookup, bpf_sk_lookup.ingress_ifindex),
        )
    };
    let v4 = family == AF_INET;
    if protocol != IPPROTO_TCP {
        return Ok(());
    }
    let netns = NetnsCookie(NETNS_COOKIE.load());
    // SAFETY: as below.
    let pod = unsafe { PODS.get(netns) };
    if interface == LOOPBACK_DEVICE || is_from_within(context, v4) {
        return match pod {
            Some(pod) if port == if v4 { pod.outbound_v4 } else { pod.outbound_v6 } => {
                decide_captured(context, netns, v4)
            }
            _ => Ok(()),
        };
    }
    let tuple = tuple(context, v4);
    if let Some(decided) = decide_direct(pod, &tuple) {
        if decided.is_ok() {
            decision!(context, "inbound: passed: direct flow", netns, tuple.client, tuple.client_port);
        }
        return decided;
    }
    // SAFETY: entries are replaced, not changed in place, and the kernel keeps them until the program ends.
    let rule = unsafe { PORTS.get(PortKey::new(netns, port)) };
    if probes::is_probe(rule, &tuple) {
        decision!(context, "inbound: passed: probe", netns, tuple.client, tuple.client_port);
        return Ok(());
    }
    if port == HBONE_PORT {
        let slot = if v4 { ListenerSlot::HboneV4 } else { ListenerSlot::HboneV6 };
        decision!(context, "inbound: tunnel: to ztunnel", netns, tuple.client, tuple.client_port);
        return assign(context, netns, slot).map_err(|()| KernelReason::HboneListenerMissing);
    }
    let Some(pod) = pod else { return Err(KernelReason::PodUnknown) };
    let mode = rule.map(|rule| rule.mode).filter(|mode| *mode != 0).unwrap_or(pod.mode);
    match InboundMode::from_number(mode) {
        // A flow that cannot be tracked could not be closed later: the daemon carries it. Without a daemon
        // nobody would follow a policy that forbids it.
        Some(InboundMode::Open) if verdicts::holds(Lease::OpenMode) && !flows::exhausted(netns) => {
            decision!(
                context,
                "inbound: passed: plaintext permitted",
                netns,
                tuple.client,
                tuple.client_port
            );
            Ok(())
        }
        Some(InboundMode::Open | InboundMode::Check) => {
            let slot = if v4 { ListenerSlot::PlaintextV4 } else { ListenerSlot::PlaintextV6 };
            decision!(context, "inbound: plaintext: to ztunnel", netns, tuple.client, tuple.client_port);
            assign(context, netns, slot).map_err(|()| KernelReason::PlaintextListenerMissing)
        }
        Some(InboundMode::Strict) | None => Err(KernelReason::PlaintextRefused),
    }
}

/// The decision about a connection to the port of ztunnel's outbound listener: a captured one gets that
/// listener and no other. When ztunnel is gone, a process of the pod may listen on its port.
#[inline(always)]
fn decide_captured(context: &SkLookupContext, netns: NetnsCookie, v4: bool) -> Result<(), KernelReason> {
    let tuple = tuple(context, v4);
    let key = HandoffKey {
        netns,
        client: tuple.client,
        client_port: tuple.client_port,
        server_port: tuple.server_port,
        reserved: 0,
    };
    // SAFETY: the kernel keeps the entry until the program ends; entries are not changed in place.
    if unsafe { HANDOFFS.get(key) }.is_none_or(|handoff| handoff.role != Role::Captured as u32) {
        return Ok(());
    }
    let slot = if v4 { ListenerSlot::OutboundV4 } else { ListenerSlot::OutboundV6 };
    assign(context, netns, slot).map_err(|()| KernelReason::OutboundListenerMissing)
}

/// The decision about a tracked direct flow: a pod of this node sent its SYN, for this pod, under a policy
/// that must still be current. None: it is not one.
#[inline(always)]
fn decide_direct(pod: Option<&Pod>, tuple: &Tuple) -> Option<Result<(), KernelReason>> {
    // SAFETY: the kernel keeps the entry until the program ends; what is read is not changed in place.
    let flow = unsafe { FLOWS.get(tuple) }.filter(|flow| flow.path == Path::Direct as u8)?;
    Some(match pod {
        Some(pod) if pod.number == flow.destination => {
            if flow.flags & FlowEntry::SHARED != 0 && !links::is_delivered(tuple, flow) {
                // It did not leave the client's own link, or the programs are missing.
                Err(KernelReason::LinkHandshakeForged)
            } else if verdicts::is_current(flow.destination, flow.generation) {
                Ok(())
            } else {
                Err(KernelReason::FlowStale)
            }
        }
        _ => Err(KernelReason::FlowMisdirected),
    })
}

#[inline(always)]
fn refuse(context: &SkLookupContext, reason: KernelReason) {
    // SAFETY: a field of this hook's context.
    let v4 = unsafe { field!(context.lookup, bpf_sk_lookup.family) } == AF_INET;
    let netns = NetnsCookie(NETNS_COOKIE.load());
    let tuple = tuple(context, v4);
    decision!(context, "inbound: refused", netns, tuple.client, tuple.client_port, reason);
    let direct = matches!(
        reason,
        KernelReason::FlowStale | KernelReason::FlowMisdirected | KernelReason::LinkHandshakeForged
    );
    let refused = Refused {
        reason,
        path: if direct { Path::Direct } else { Path::Native },
        source: probable_workload(tuple.client),
        // SAFETY: the kernel keeps the entry until the program ends.
        destination: unsafe { PODS.get(netns) }.map_or(WorkloadNumber::NONE, |pod| pod.number),
        netns,
    };
    records::refused(&refused, &tuple, &SocketAddress::UNSET);
}

#[inline(always)]
fn tuple(context: &SkLookupContext, v4: bool) -> Tuple {
    // SAFETY: fields of this hook's context; the remote port is in network byte order, in the lower half.
    let (server_port, client_port) = unsafe {
        (
            field!(context.lookup, bpf_sk_lookup.local_port) as u16,
            field!(context.lookup, bpf_sk_lookup.remote_port) as u16,
        )
    };
    Tuple {
        client: remote(context, v4),
        server: local(context, v4),
        client_port: u16::from_be(client_port),
        server_port,
    }
}

/// Redirects the connection to one of ztunnel's listeners.
#[inline(always)]
fn assign(context: &SkLookupContext, netns: NetnsCookie, slot: ListenerSlot) -> Result<(), ()> {
    // During an upgrade another program of the same pod may have assigned a socket already: this one replaces
    // it.
    const REPLACE: u64 = aya_ebpf::bindings::BPF_SK_LOOKUP_F_REPLACE as u64;
    LISTENERS.assign(context.lookup, &ListenerKey::new(netns, slot), REPLACE)
}

/// Whether the connection is from the pod itself. The device does not tell: for a packet over loopback the
/// kernel passes the device that has the address. A forged packet gains nothing: a source address of the
/// pod's own is refused on other devices (IPv4), and the answer never leaves the pod (both families).
#[inline(always)]
fn is_from_within(context: &SkLookupContext, v4: bool) -> bool {
    let remote = remote(context, v4);
    remote.is_local() || remote == local(context, v4)
}

#[inline(always)]
fn local(context: &SkLookupContext, v4: bool) -> Address {
    // SAFETY: fields of this hook's context.
    unsafe {
        if v4 {
            return Address::mapped(field!(context.lookup, bpf_sk_lookup.local_ip4));
        }
        address!(context.lookup, bpf_sk_lookup.local_ip6)
    }
}

#[inline(always)]
fn remote(context: &SkLookupContext, v4: bool) -> Address {
    // SAFETY: fields of this hook's context.
    unsafe {
        if v4 {
            return Address::mapped(field!(context.lookup, bpf_sk_lookup.remote_ip4));
        }
        address!(context.lookup, bpf_sk_lookup.remote_ip6)
    }
}
