//! A log filter that an operator sends to a daemon: accepted or refused.
#![no_main]

use ambit_daemon_kit::telemetry::logs;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|filter: &str| {
    if let Ok(targets) = logs::parse_filter(filter) {
        // Its displayed form is accepted, too.
        let again = logs::parse_filter(&targets.to_string()).expect("a filter");
        assert_eq!(again.to_string(), targets.to_string());
    }
});
