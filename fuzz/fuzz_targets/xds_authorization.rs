//! Any `istio.security.Authorization`: a value or an error. A value reads the same after it is encoded.
#![no_main]

use ambit_xds::convert::{decode_authorization, encode_authorization};
use ambit_xds::proto::istio::security::Authorization;
use libfuzzer_sys::fuzz_target;
use prost::Message as _;

fuzz_target!(|data: &[u8]| {
    let Ok(message) = Authorization::decode(data) else { return };
    let Ok(policy) = decode_authorization(&message) else { return };
    assert_eq!(decode_authorization(&encode_authorization(&policy)).as_ref(), Ok(&policy));
});
