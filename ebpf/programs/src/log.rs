//! Logging of decisions, in builds with the feature `log` only: `cargo xtask ebpf --log`.

/// Logs a decision at debug level: `decision!(context, "text", netns, address, port)`, and `reason` with its
/// number where there is one. The loader replaces the number by the reason's name.
#[cfg(feature = "log")]
macro_rules! decision {
    ($context:expr, $text:literal, $netns:expr, $address:expr, $port:expr) => {
        aya_log_ebpf::debug!(
            $context,
            "{} netns={} address={:i} port={}",
            $text,
            $netns.0,
            $address.octets(),
            $port
        )
    };
    ($context:expr, $text:literal, $netns:expr, $address:expr, $port:expr, $reason:expr) => {
        aya_log_ebpf::debug!(
            $context,
            "{} netns={} address={:i} port={} reason={}",
            $text,
            $netns.0,
            $address.octets(),
            $port,
            $reason as u32
        )
    };
}

/// Does nothing: this build does not log.
#[cfg(not(feature = "log"))]
macro_rules! decision {
    ($($argument:tt)*) => {};
}

pub(crate) use decision;
