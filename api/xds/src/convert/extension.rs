//! Ambit's own fields, as named extensions of Istio's messages.

use prost::Message;
use prost_types::Any;

use super::Problem;
use crate::proto::istio::workload as wire;
use crate::type_url::type_url;

/// The extension; `None` if all its fields have their defaults.
pub(super) fn encode<M: Message + Default + PartialEq>(
    name: &str,
    message_name: &str,
    message: &M,
) -> Option<wire::Extension> {
    (*message != M::default()).then(|| wire::Extension {
        name: name.to_owned(),
        config: Some(Any { type_url: type_url(message_name), value: message.encode_to_vec() }),
    })
}

/// The extension of that name; the default if there is none.
pub(super) fn decode<M: Message + Default>(
    extensions: &[wire::Extension],
    name: &str,
    message_name: &str,
) -> Result<M, Problem> {
    let Some(extension) = extensions.iter().find(|extension| extension.name == name) else {
        return Ok(M::default());
    };
    let problem = |problem: String| Problem::new(field(name), problem);
    let config = extension.config.as_ref().ok_or_else(|| problem("has no config".to_owned()))?;
    if config.type_url != type_url(message_name) {
        return Err(problem(format!("unexpected type {:?}", config.type_url)));
    }
    M::decode(config.value.as_slice()).map_err(|e| problem(e.to_string()))
}

/// An extension's field in problems.
pub(super) fn field(name: &str) -> String {
    format!("extensions[{name}]")
}
