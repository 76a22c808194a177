//! What policy did not permit does not compile.

#[test]
fn application_is_dialled_only_with_a_permit() {
    let cases = trybuild::TestCases::new();
    cases.compile_fail("tests/permit/without_permit.rs");
    cases.compile_fail("tests/permit/forged_permit.rs");
}
