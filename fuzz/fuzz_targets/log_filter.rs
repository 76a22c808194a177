//! A log filter as an operator may send it to a daemon: taken or refused by name.
#![no_main]

use ambit_daemon_kit::telemetry::logs;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|filter: &str| {
    if let Ok(targets) = logs::parse_filter(filter) {
        // As it is shown, it is taken again.
        let again = logs::parse_filter(&targets.to_string()).expect("a filter");
        assert_eq!(again.to_string(), targets.to_string());
    }
});
