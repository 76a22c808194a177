//! The plugin as runtimes call it. The API server is a fake ([`fake_api`]), and so is the agent: the suites
//! use real ones. The daemon's side of enrolment is the real protocol. Needs root.

mod fake_api;

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ambit_enrol::{Handler, Request as Enrolment, Server, SourceName};
use serde_json::{Value, json};

use fake_api::Objects;

use super::*;
use crate::credential::Credential;
use crate::request::Request;

const PREVIOUS: &str = r#"{ "cniVersion": "1.0.0", "interfaces": [],  "ips": [{"address": "10.0.0.5/24"}] }"#;

/// A node: an API server, a ztunnel, an agent, and a pod's network namespace.
struct Node {
    folder: tempfile::TempDir,
    requests: Arc<Mutex<Vec<String>>>,
    /// What the agent was asked.
    told: Arc<Mutex<Vec<Request>>>,
    daemon: Arc<Daemon>,
    runtime: Option<tokio::runtime::Runtime>,
    /// Kept open: the thread that made the namespace has ended.
    namespace: File,
}

/// The daemon's side: records enrolments, and refuses pods named `refused`.
#[derive(Debug, Default)]
struct Daemon(Mutex<Vec<String>>);

impl Handler for Daemon {
    async fn handle(&self, source: &SourceName, request: Enrolment) -> Result<(), String> {
        match request {
            Enrolment::Add(pod, _) if pod.name == "refused" => Err("no configuration yet".to_owned()),
            Enrolment::Add(pod, _) => {
                self.0.lock().unwrap().push(format!("{source}: {}", pod.uid));
                Ok(())
            }
            Enrolment::Ending(_) => {
                self.0.lock().unwrap().push(format!("{source}: ending"));
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

impl Node {
    fn start(objects: Objects) -> Self {
        let mut node = Self::without_ztunnel(objects);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let server = runtime.block_on(async { Server::bind(&node.path("enrol.sock")) }).unwrap();
        runtime.spawn(ambit_enrol::serve(server, node.daemon.clone()));
        node.runtime = Some(runtime);
        node.start_agent();
        node
    }

    /// An agent that annotates every pod but those named `unknown`.
    fn start_agent(&self) {
        let listener = UnixListener::bind(self.path("agent.sock")).unwrap();
        let told = self.told.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                let mut line = String::new();
                BufReader::new(&stream).read_line(&mut line).unwrap();
                let request: Request = serde_json::from_str(&line).unwrap();
                let unknown = matches!(&request, Request::Enrolled { name, .. } if name == "unknown");
                told.lock().unwrap().push(request);
                let answer = if unknown { r#"{"error": "no such pod"}"# } else { "{}" };
                // The test may have ended.
                _ = writeln!(&stream, "{answer}");
            }
        });
    }

    fn without_ztunnel(objects: Objects) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let credential = fake_api::serve(objects, requests.clone());
        std::fs::write(folder.path().join("kubeconfig"), credential.to_text()).unwrap();
        let namespace = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("needs root");
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let namespace = namespace.join().unwrap();
        let told = Arc::default();
        Self { folder, requests, told, daemon: Arc::default(), runtime: None, namespace }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn input(&self) -> Value {
        json!({
            "cniVersion": "1.0.0", "name": "lab", "type": "ambit-cni",
            "kubeconfig": self.path("kubeconfig"), "socket": self.path("enrol.sock"), "cluster": "Kubernetes",
            "excluded_namespaces": ["ambit-system"], "log_file": self.path("cni.log"),
            "prevResult": {}, "runtimeConfig": {"unknown": true},
        })
    }

    fn namespace_path(&self) -> String {
        use std::os::fd::AsRawFd as _;
        format!("/proc/{}/fd/{}", std::process::id(), self.namespace.as_raw_fd())
    }

    fn del(&self, namespace: &str) -> Answer {
        let environment = environment(&[("CNI_COMMAND", "DEL"), ("CNI_NETNS", namespace)]);
        run(&environment, self.input().to_string().as_bytes())
    }

    fn add(&self, arguments: &str) -> Answer {
        let path = self.namespace_path();
        let environment = environment(&[
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", &path),
            ("CNI_ARGS", arguments),
        ]);
        // Verbatim: it is passed on as it came.
        let input =
            self.input().to_string().replace(r#""prevResult":{}"#, &format!(r#""prevResult":{PREVIOUS}"#));
        run(&environment, input.as_bytes())
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    fn told(&self) -> Vec<Request> {
        self.told.lock().unwrap().clone()
    }

    fn enrolled(&self) -> Vec<String> {
        self.daemon.0.lock().unwrap().clone()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("cni.log")).unwrap_or_default()
    }
}

fn environment(pairs: &[(&str, &str)]) -> Environment {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

const POD: &str = "/api/v1/namespaces/shop/pods/web";
const NAMESPACE: &str = "/api/v1/namespaces/shop";
const ARGUMENTS: &str = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID=u1";

fn pod(labels: &Value) -> Value {
    json!({"metadata": {"name": "web", "uid": "u1", "labels": labels},
        "spec": {"nodeName": "n", "serviceAccountName": "web"},
        "status": {"phase": "Pending"}})
}

fn namespace(mode: &str) -> Value {
    json!({"metadata": {"name": "shop", "labels": {"istio.io/dataplane-mode": mode}}})
}

/// A labelled namespace with one pod.
fn labelled() -> Objects {
    Objects::from([(POD, pod(&json!({}))), (NAMESPACE, namespace("ambient"))])
}

fn error(answer: &Answer) -> Value {
    assert!(!answer.success, "{}", String::from_utf8_lossy(&answer.output));
    serde_json::from_slice(&answer.output).unwrap()
}

#[test]
fn a_labelled_pod_is_enrolled_and_the_agent_annotates_it() {
    let node = Node::start(labelled());
    let answer = node.add(ARGUMENTS);
    assert_eq!((String::from_utf8(answer.output).unwrap().as_str(), answer.success), (PREVIOUS, true));
    assert_eq!(node.enrolled(), ["cni: Kubernetes//Pod/shop/web"]);
    assert_eq!(node.requests(), [format!("GET {POD}"), format!("GET {NAMESPACE}")], "it writes nothing");
    let [namespace, name, uid] = ["shop", "web", "u1"].map(str::to_owned);
    assert_eq!(node.told(), [Request::Enrolled { namespace, name, uid }]);
    assert!(node.log().contains("ADD shop/web: enrolled"), "{}", node.log());
    assert!(!node.log().contains("secret"));
}

#[test]
fn other_pods_start_without_ztunnel() {
    let none = json!({"istio.io/dataplane-mode": "none"});
    let mirror = json!({"metadata": {"uid": "other", "annotations": {"kubernetes.io/config.mirror": "x"}}});
    let mut nobody = pod(&json!({}));
    nobody["spec"].as_object_mut().unwrap().remove("serviceAccountName");
    let rows: [(&str, Objects, &str, usize); 7] = [
        ("not labelled", Objects::from([(POD, pod(&json!({}))), (NAMESPACE, json!({}))]), ARGUMENTS, 2),
        ("opted out", Objects::from([(POD, pod(&none)), (NAMESPACE, namespace("ambient"))]), ARGUMENTS, 2),
        (
            "another value",
            Objects::from([(POD, pod(&json!({}))), (NAMESPACE, namespace("sidecar"))]),
            ARGUMENTS,
            2,
        ),
        ("a static pod", Objects::from([(POD, mirror), (NAMESPACE, namespace("ambient"))]), ARGUMENTS, 2),
        (
            "without a service account",
            Objects::from([(POD, nobody), (NAMESPACE, namespace("ambient"))]),
            ARGUMENTS,
            2,
        ),
        (
            "Ambit's own",
            Objects::new(),
            "K8S_POD_NAMESPACE=ambit-system;K8S_POD_NAME=ztunnel-x;K8S_POD_UID=z",
            0,
        ),
        ("no pod of Kubernetes", Objects::new(), "IgnoreUnknown=1", 0),
    ];
    for (name, objects, arguments, questions) in rows {
        let node = Node::without_ztunnel(objects);
        let answer = node.add(arguments);
        assert_eq!(
            (String::from_utf8_lossy(&answer.output).as_ref(), answer.success),
            (PREVIOUS, true),
            "{name}"
        );
        assert_eq!(node.requests().len(), questions, "{name}: {:?}", node.requests());
        let without_identity = ["a static pod", "without a service account"].contains(&name);
        assert_eq!(node.log().contains("it has no identity"), without_identity, "{name}: {}", node.log());
        assert_eq!(node.log().is_empty(), !without_identity, "{name}: {}", node.log());
    }
}

#[test]
fn a_pod_does_not_start_when_enrolment_fails() {
    let refused = |arguments: &str| arguments.replace("web", "refused");
    let pods = "/api/v1/namespaces/shop/pods/refused";
    let mut with_refused = labelled();
    with_refused.insert(pods, pod(&json!({})));
    let mut with_unknown = labelled();
    with_unknown.insert("/api/v1/namespaces/shop/pods/unknown", pod(&json!({})));
    let failing = |path: &'static str, status: u16| {
        let mut objects = labelled();
        objects.insert(path, json!(status));
        objects
    };
    let rows = [
        (
            "no such pod",
            Objects::new(),
            ARGUMENTS.to_owned(),
            11,
            "GET /api/v1/namespaces/shop/pods/web: 404",
        ),
        ("not allowed", failing(POD, 403), ARGUMENTS.to_owned(), 101, "403"),
        ("not authenticated", failing(POD, 401), ARGUMENTS.to_owned(), 101, "401"),
        ("a failing API server", failing(NAMESPACE, 500), ARGUMENTS.to_owned(), 11, "500"),
        ("not annotated", with_unknown, ARGUMENTS.replace("web", "unknown"), 11, "agent did not annotate"),
        ("another pod", labelled(), ARGUMENTS.replace("u1", "u0"), 11, "another pod has this name now"),
        ("refused by ztunnel", with_refused, refused(ARGUMENTS), 100, "ztunnel did not enrol"),
    ];
    for (name, objects, arguments, code, message) in rows {
        let node = Node::start(objects);
        let error = error(&node.add(&arguments));
        assert_eq!(error["code"], code, "{name}: {error}");
        assert_eq!(error["cniVersion"], "1.0.0", "{name}");
        assert!(error["msg"].as_str().unwrap().contains(message), "{name}: {error}");
        assert!(node.log().contains("failed after"), "{name}: {}", node.log());
        let told = node.told().contains(&Request::CredentialRefused);
        assert_eq!(told, name == "not authenticated", "{name}");
    }
}

#[test]
fn a_pod_does_not_start_without_a_trusted_api_server() {
    const ANOTHERS: &str = "another's certificate";
    let node = Node::start(labelled());
    let text = std::fs::read_to_string(node.path("kubeconfig")).unwrap();
    let credential = Credential::parse(&text).unwrap();
    let other = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap().cert.pem();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let rows = [
        ("not there", None, "No such file"),
        ("no kubeconfig", Some("x".to_owned()), "not a kubeconfig"),
        (
            ANOTHERS,
            Some(Credential { authorities: other, ..credential.clone() }.to_text()),
            "invalid peer certificate",
        ),
        (
            "a closed port",
            Some(Credential { server: format!("https://{closed}"), ..credential.clone() }.to_text()),
            "refused",
        ),
        (
            "not over TLS",
            Some(Credential { server: format!("http://{closed}"), ..credential }.to_text()),
            "https",
        ),
    ];
    for (name, text, details) in rows {
        match text {
            Some(text) => std::fs::write(node.path("kubeconfig"), text).unwrap(),
            None => std::fs::remove_file(node.path("kubeconfig")).unwrap(),
        }
        let error = error(&node.add(ARGUMENTS));
        assert_eq!(error["code"], 11, "{name}: {error}");
        assert!(error["details"].as_str().unwrap().contains(details), "{name}: {error}");
        let told = std::mem::take(&mut *node.told.lock().unwrap());
        let expected: &[Request] = if name == ANOTHERS { &[Request::CredentialRefused] } else { &[] };
        assert_eq!(told, expected, "{name}");
    }
    assert_eq!(node.enrolled(), Vec::<String>::new());
}

#[test]
fn add_waits_for_a_ztunnel_and_an_agent_that_start_late() {
    let node = Node::without_ztunnel(labelled());
    std::thread::scope(|scope| {
        let adding = scope.spawn(|| node.add(ARGUMENTS));
        // Both requests were made: from here on it waits for ztunnel.
        while node.requests().len() < 2 {
            std::thread::sleep(Duration::from_millis(5));
        }
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let server = runtime.block_on(async { Server::bind(&node.path("enrol.sock")) }).unwrap();
        runtime.spawn(ambit_enrol::serve(server, node.daemon.clone()));
        while node.enrolled().is_empty() {
            std::thread::sleep(Duration::from_millis(5));
        }
        node.start_agent();
        assert!(adding.join().unwrap().success);
    });
    assert_eq!(node.enrolled(), ["cni: Kubernetes//Pod/shop/web"]);
}

#[test]
fn ztunnel_is_told_that_a_pod_ends() {
    let node = Node::start(labelled());
    assert!(node.del(&node.namespace_path()).success);
    assert_eq!(node.enrolled(), ["cni: ending"]);
    // Nothing keeps a pod from being deleted.
    for namespace in ["", "/proc/nowhere"] {
        assert!(node.del(namespace).success, "namespace {namespace:?}");
    }
    let without = Node::without_ztunnel(labelled());
    assert!(without.del(&without.namespace_path()).success, "no ztunnel");
    assert!(without.log().contains("DEL: "), "{}", without.log());
}

#[test]
fn commands_without_effect_and_invalid_input() {
    let node = Node::without_ztunnel(Objects::new());
    let mut with_previous = node.input();
    with_previous["prevResult"] = serde_json::from_str(PREVIOUS).unwrap();
    let mut without = node.input();
    without.as_object_mut().unwrap().remove("prevResult");
    let future = json!({"cniVersion": "9.0.0"});
    let bare = json!({"cniVersion": "1.1.0", "name": "x", "type": "ambit-cni"});
    let versions = r#""supportedVersions":["0.1.0","0.2.0","0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]"#;
    let all = "ADD CNI_CONTAINERID CNI_IFNAME CNI_NETNS";
    // Command and variables that are set, input, then a part of the output or the error's code.
    let rows: [(&str, &str, &Value, Result<&str, u32>); 17] = [
        ("version", "VERSION", &json!({"cniVersion": "0.4.0"}), Ok(versions)),
        ("version of a future", "VERSION", &future, Ok(r#""cniVersion":"9.0.0""#)),
        ("delete", "DEL", &without, Ok("")),
        ("delete with nothing but a version", "DEL", &bare, Ok("")),
        ("collect", "GC", &bare, Ok("")),
        ("check", "CHECK", &with_previous, Ok("")),
        ("check without a result", "CHECK", &without, Err(7)),
        ("status without ztunnel", "STATUS", &without, Ok("")),
        ("status of no configuration", "STATUS", &bare, Err(7)),
        ("no command", "", &without, Err(4)),
        ("no such command", "DESTROY", &without, Err(4)),
        ("a version that is not supported", "ADD", &future, Err(1)),
        ("not chained", all, &without, Err(7)),
        ("no configuration", all, &bare, Err(7)),
        ("no container", "ADD CNI_IFNAME CNI_NETNS", &with_previous, Err(4)),
        ("no interface", "ADD CNI_CONTAINERID CNI_NETNS", &with_previous, Err(4)),
        ("no namespace", "ADD CNI_CONTAINERID CNI_IFNAME", &with_previous, Err(4)),
    ];
    for (name, words, input, expected) in rows {
        let mut words = words.split(' ');
        let mut set = environment(&[("CNI_COMMAND", words.next().unwrap())]);
        set.extend(words.map(|word| (word.to_owned(), "x".to_owned())));
        let answer = run(&set, input.to_string().as_bytes());
        match expected {
            Ok(text) => {
                let output = String::from_utf8(answer.output.clone()).unwrap();
                assert!(answer.success && output.contains(text), "{name}: {output}");
                assert_eq!(output.is_empty(), text.is_empty(), "{name}: {output}");
            }
            Err(code) => assert_eq!(error(&answer)["code"], code, "{name}: {}", error(&answer)),
        }
    }
    let garbage = run(&environment(&[("CNI_COMMAND", "ADD")]), b"{");
    assert_eq!(error(&garbage)["code"], 6);
}

#[test]
fn invalid_pod_arguments_are_refused() {
    let node = Node::without_ztunnel(Objects::new());
    let rows = [
        ("a name without a namespace", "K8S_POD_NAME=web"),
        ("a namespace without a name", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME="),
        ("a path", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=../../secrets/x"),
        ("dots", "K8S_POD_NAMESPACE=..;K8S_POD_NAME=x"),
        ("a question", "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web?x=y"),
        ("no pair", "IgnoreUnknown"),
    ];
    for (name, arguments) in rows {
        assert_eq!(error(&node.add(arguments))["code"], 4, "{name}");
    }
    assert_eq!(node.requests(), Vec::<String>::new());
}
