use ambit_proxy::report::Flag;

use super::*;

#[test]
fn endings_match_the_recorded_reason() {
    let rows = [
        ("in order", closed(Some(Reason::Closed)), Reason::Closed, Flag::None, false),
        ("by reset", closed(Some(Reason::Reset)), Reason::Reset, Flag::None, true),
        (
            "a policy's denial",
            refused(Some(Reason::PlaintextRefused)),
            Reason::PlaintextRefused,
            Flag::Denied,
            true,
        ),
        ("overtaken", refused(Some(Reason::FlowStale)), Reason::FlowStale, Flag::Denied, true),
        (
            "no daemon",
            refused(Some(Reason::OutboundListenerMissing)),
            Reason::OutboundListenerMissing,
            Flag::ConnectFailed,
            true,
        ),
    ];
    for (name, ending, reason, flag, said) in rows {
        assert_eq!((ending.reason, ending.flag, ending.error.is_some()), (reason, flag, said), "{name}");
    }
}
