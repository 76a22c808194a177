//! A packet on the enrolment socket, from either side: a message or an error, and a message is written and
//! read again the same.
#![no_main]

use ambit_enrol::{Answer, Message};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|packet: &[u8]| {
    if let Ok(message) = Message::parse(packet) {
        let written = serde_json::to_vec(&message).expect("JSON");
        assert_eq!(Message::parse(&written).expect("what was taken is written as it is taken"), message);
    }
    if let Ok(answer) = serde_json::from_slice::<Answer>(packet) {
        let written = serde_json::to_vec(&answer).expect("JSON");
        assert_eq!(serde_json::from_slice::<Answer>(&written).expect("the same"), answer);
    }
});
