//! An API server for tests: it keeps objects under their paths, with resource versions, and answers lists of
//! what it was given. No watches.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use kube::{Client, Config};
use parking_lot::Mutex;
use serde_json::{Value, json};

/// The objects by path, shared with the server's threads.
#[derive(Clone, Debug, Default)]
pub(super) struct FakeApi {
    objects: Arc<Mutex<BTreeMap<String, Value>>>,
}

impl FakeApi {
    /// A client of a new server, which lives as long as the process.
    pub(super) fn client(&self) -> Client {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let server = self.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let server = server.clone();
                std::thread::spawn(move || while_open(&stream.unwrap(), &server));
            }
        });
        Client::try_from(Config::new(address.parse().unwrap())).unwrap()
    }

    /// Sets what a path answers: an object, or an error's code.
    pub(super) fn put(&self, path: &str, object: Value) {
        self.objects.lock().insert(path.to_owned(), object);
    }

    pub(super) fn get(&self, path: &str) -> Option<Value> {
        self.objects.lock().get(path).cloned()
    }

    fn answer(&self, verb: &str, path: &str, body: &[u8]) -> (u64, Value) {
        let failed = |code: u64| {
            let reason = if code == 404 { "NotFound" } else { "" };
            let status = json!({
                "kind": "Status", "status": "Failure", "code": code, "message": "as told", "reason": reason,
            });
            (code, status)
        };
        let mut objects = self.objects.lock();
        let path = path.split('?').next().unwrap();
        if verb == "GET" {
            return match objects.get(path) {
                Some(Value::Number(code)) => failed(code.as_u64().unwrap()),
                Some(object) => (200, object.clone()),
                None => failed(404),
            };
        }
        let mut object: Value = serde_json::from_slice(body).unwrap();
        let named = format!("{path}/{}", object["metadata"]["name"].as_str().unwrap_or_default());
        let path = if verb == "POST" { named } else { path.to_owned() };
        let held = objects.get(&path).map(|held| held["metadata"]["resourceVersion"].clone());
        let version = match held {
            None if verb == "POST" => 1,
            Some(held) if verb == "PUT" && held == object["metadata"]["resourceVersion"] => {
                held.as_str().unwrap().parse::<u64>().unwrap() + 1
            }
            _ => return failed(409),
        };
        object["metadata"]["resourceVersion"] = version.to_string().into();
        objects.insert(path, object.clone());
        (200, object)
    }
}

fn while_open(stream: &TcpStream, server: &FakeApi) {
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    loop {
        let mut first = String::new();
        if reader.read_line(&mut first).unwrap_or_default() == 0 {
            return;
        }
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            length = line.strip_prefix("content-length: ").map_or(length, |number| number.parse().unwrap());
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let mut words = first.split(' ');
        let (code, object) = server.answer(words.next().unwrap(), words.next().unwrap(), &body);
        let object = object.to_string();
        let head = format!(
            "HTTP/1.1 {code} X\r\ncontent-type: application/json\r\ncontent-length: {}",
            object.len()
        );
        write!(writer, "{head}\r\n\r\n{object}").unwrap();
    }
}
