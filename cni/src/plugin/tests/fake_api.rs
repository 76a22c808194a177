//! A fake API server: it serves objects, and records requests.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};

use crate::credential::Credential;

/// Objects by path; a missing one is 404, and a number is answered as that status.
pub(super) type Objects = BTreeMap<&'static str, Value>;

/// Serves the objects over TLS from a thread that ends with the process; returns the credential for it.
pub(super) fn serve(objects: Objects, requests: Arc<Mutex<Vec<String>>>) -> Credential {
    let certified = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = format!("https://{}/", listener.local_addr().unwrap());
    let config = Arc::new(config);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            // A client that does not trust the certificate ends here.
            _ = answer(stream.unwrap(), &config, &objects, &requests);
        }
    });
    Credential { server, authorities: certified.cert.pem(), token: "secret".to_owned() }
}

fn answer(
    stream: TcpStream,
    config: &Arc<ServerConfig>,
    objects: &Objects,
    requests: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let tls = ServerConnection::new(config.clone()).unwrap();
    let mut reader = BufReader::new(StreamOwned::new(tls, stream));
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let (mut length, mut authorized) = (0, false);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        length = line.strip_prefix("content-length: ").map_or(length, |number| number.parse().unwrap());
        authorized |= line == "authorization: bearer secret";
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let mut words = first.split(' ');
    let (verb, path) = (words.next().unwrap(), words.next().unwrap());
    requests
        .lock()
        .unwrap()
        .push(format!("{verb} {path} {}", String::from_utf8_lossy(&body)).trim_end().to_owned());
    let not_found = json!({"kind": "Status", "message": "not found"});
    let (status, content) = match objects.get(path) {
        _ if !authorized => (401, json!({"message": "who are you"})),
        Some(Value::Number(status)) => (status.as_u64().unwrap(), json!({"message": "as configured"})),
        Some(object) => (200, object.clone()),
        None => (404, not_found),
    };
    let content = content.to_string();
    let stream = reader.get_mut();
    write!(
        stream,
        "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{content}",
        content.len()
    )?;
    stream.flush()
}
