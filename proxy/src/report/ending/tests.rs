use super::*;

#[test]
fn what_only_a_waypoint_has_is_written_as_envoy_does() {
    let flags = [Reason::RouteMissing, Reason::BackendInvalid].map(|reason| flag(reason).as_str());
    assert_eq!(flags, ["NR", "NC"]);
}

#[test]
fn only_connections_that_were_made_have_no_flag() {
    let without: Vec<_> = Reason::ALL.iter().filter(|reason| flag(**reason) == Flag::None).collect();
    let made = [
        Reason::Reset,
        Reason::Drained,
        Reason::Closed,
        Reason::Abandoned,
        Reason::DirectDisabled,
        Reason::TlsDemanded,
    ];
    assert_eq!(without, made.iter().collect::<Vec<_>>());
}
