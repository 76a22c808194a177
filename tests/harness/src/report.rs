//! What is shown of a lab when a test fails: the last words of its daemons.

use std::fmt::Write as _;
use std::path::Path;

use crate::{daemon, janitor};

/// The last lines of every log in a lab's directory.
pub(crate) fn tails(dir: &Path, lines: usize) -> String {
    let mut out = String::new();
    for name in ["controller", "node0", "node1", "node2"] {
        let log = dir.join(format!("{name}.log"));
        if log.exists() {
            let _ = writeln!(out, "--- {name}, last lines ---\n{}", daemon::tail(&log, lines));
        }
    }
    out
}

/// When a test panics, what the daemons of this process' labs last said is shown, once.
pub(crate) fn install() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            usual(panic);
            for entry in std::fs::read_dir(janitor::LABS).into_iter().flatten().flatten() {
                if janitor::is_ours(&entry.path()) {
                    eprintln!("{}", tails(&entry.path(), 10));
                }
            }
        }));
    });
}
