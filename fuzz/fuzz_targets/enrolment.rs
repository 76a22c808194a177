//! A packet on the enrolment socket, from either side: a message or an error. A message reads the same after
//! it is written.
#![no_main]

use ambit_enrol::{Answer, Message};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|packet: &[u8]| {
    if let Ok(message) = Message::parse(packet) {
        let written = serde_json::to_vec(&message).expect("JSON");
        assert_eq!(Message::parse(&written).expect("a written message is valid"), message);
    }
    if let Ok(answer) = serde_json::from_slice::<Answer>(packet) {
        let written = serde_json::to_vec(&answer).expect("JSON");
        assert_eq!(serde_json::from_slice::<Answer>(&written).expect("a written answer is valid"), answer);
    }
});
