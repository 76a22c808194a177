use super::*;

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
