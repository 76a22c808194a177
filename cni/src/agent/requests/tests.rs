use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;

use super::*;
use crate::request::{self, Error};

const DEADLINE: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_answered_and_a_silent_client_holds_up_nobody() {
    _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let folder = tempfile::tempdir().unwrap();
    // No API server is there.
    let closed = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
    let cluster = Cluster {
        client: kube::Client::try_from(closed).unwrap(),
        node: "node1".to_owned(),
        system_namespace: "ambit-system".to_owned(),
        excluded: Vec::new(),
    };
    // A former agent's socket.
    std::fs::write(folder.path().join(SOCKET), "").unwrap();
    let refused = Arc::new(Notify::new());
    let requests = Requests::open(folder.path(), cluster, refused.clone()).unwrap();
    let socket = folder.path().join(SOCKET);
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "for root only");
    tokio::spawn(requests.serve());

    let asking = tokio::task::spawn_blocking(move || {
        let _silent = UnixStream::connect(&socket).unwrap();
        request::ask(&socket, &Request::CredentialRefused, DEADLINE).unwrap();
        let [namespace, name, uid] = ["shop", "web", "u1"].map(str::to_owned);
        let answer = request::ask(&socket, &Request::Enrolled { namespace, name, uid }, DEADLINE);
        assert!(matches!(answer, Err(Error::Refused(_))), "{answer:?}");
        let stream = UnixStream::connect(&socket).unwrap();
        writeln!(&stream, "hello").unwrap();
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        assert!(line.contains("not a request"), "{line}");
    });
    asking.await.unwrap();
    tokio::time::timeout(DEADLINE, refused.notified()).await.expect("the credential is to be renewed");
}

#[test]
fn the_plugin_gives_up_when_there_is_no_agent() {
    let folder = tempfile::tempdir().unwrap();
    let asked = request::ask(&folder.path().join(SOCKET), &Request::CredentialRefused, Duration::ZERO);
    assert!(matches!(asked, Err(Error::Io(_))), "{asked:?}");
}
