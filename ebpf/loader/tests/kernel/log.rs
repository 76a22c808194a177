//! Programs built with logging: their decisions arrive in `tracing`, and what logging costs.

use std::fmt::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::lab::{accept, local, until};
use crate::neighbours::{CLIENT, Neighbours, SERVER, V4};

/// The object that `cargo xtask ebpf --log` builds.
pub(crate) fn object() -> PathBuf {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo");
    let object = PathBuf::from(manifest).join("../../target/ambit-ebpf/ambit-ebpf-log.o");
    assert!(object.exists(), "no {}: run `cargo xtask ebpf --log`", object.display());
    object
}

/// Collects the messages of the programs.
#[derive(Clone, Default)]
struct Messages(Arc<Mutex<Vec<String>>>);

impl Messages {
    fn contain(&self, parts: &[&str]) -> bool {
        let messages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        messages.iter().any(|message| parts.iter().all(|part| message.contains(part)))
    }
}

struct Text<'a>(&'a mut String);

impl Visit for Text<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            write!(self.0, "{value:?}").expect("text");
        }
    }
}

impl Subscriber for Messages {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "ambit_ebpf" && *metadata.level() == Level::DEBUG
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut message = String::new();
        event.record(&mut Text(&mut message));
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(message);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[test]
fn decisions_and_reasons_are_logged() {
    let messages = Messages::default();
    // Global: the reader of the log is a thread of its own. No other test of this binary reads `tracing`.
    tracing::subscriber::set_global_default(messages.clone()).expect("no other subscriber");
    let world = Neighbours::with_object(Some(object()));
    let app = world.pods[SERVER].listen(V4[SERVER]);
    let to = local(&app);
    let (address, port) = (format!("address={}", to.ip()), format!("port={}", to.port()));
    let netns = format!("netns={}", world.pods[CLIENT].cookie);

    let captured = world.pods[CLIENT].connect(to).expect("captured");
    until("the capture is logged", || {
        messages.contain(&["connect: captured: no verdict for the direct path", &netns, &address, &port])
    });
    world.allow(CLIENT, SERVER, to);
    let client = world.pods[CLIENT].connect(to).expect("direct");
    let _server = accept(&app);
    until("the direct connection is logged", || {
        messages.contain(&["connect: direct: verdict cached", &netns, &address, &port])
            && messages.contain(&["inbound: passed: direct flow", V4[CLIENT]])
            && messages.contain(&["sockops: direct flow established", V4[CLIENT]])
    });
    let refused = world.node.connect(to).expect_err("plaintext to a strict pod");
    until("the refusal is logged with its reason", || {
        messages.contain(&["inbound: refused", crate::neighbours::NODE, "reason=plaintext_refused"])
    });
    drop((captured, client, refused));
}
