//! Certificates and configurations that a client or a server must refuse, and what it says of them.

use std::sync::Arc;

use ambit_hbone::client::{self, Connection};
use ambit_hbone::memory::Account;
use ambit_hbone::request::ConnectRequest;
use ambit_hbone::server::Settings;
use ambit_hbone::tls::{self, WorkloadCertificate};
use ambit_hbone::{Error, Http2};
use rcgen::{ExtendedKeyUsagePurpose, SanType};
use rustls::client::ResolvesClientCert;
use rustls::crypto::aws_lc_rs;
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ServerConfig, SignatureScheme};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use crate::ca::{Ca, Claims};
use crate::mesh::{CLIENT, Inbound, SERVER, identity, listen, soon};

/// An identity that is neither the client's nor the server's.
const OTHER: &str = "spiffe://cluster.local/ns/shop/sa/mallory";

async fn connect(address: std::net::SocketAddr, config: Arc<ClientConfig>) -> Result<Connection, Error> {
    let socket = TcpStream::connect(address).await.expect("a connection");
    soon(client::connect(socket, config, &Http2::default(), &Account::default())).await
}

/// Shows the client's certificate to a good server. What the server says of it, and whether the client got a
/// tunnel.
async fn show(server: &WorkloadCertificate, config: Arc<ClientConfig>) -> (Option<Error>, bool) {
    let mut inbound = Inbound::start(server, Settings::default()).await;
    let (_application, address) = listen().await;
    let open = async {
        let connection = connect(inbound.address, config).await?;
        soon(connection.open(&ConnectRequest::to(address))).await
    };
    let tunnel = open.await;
    let got_in = tunnel.is_ok();
    if got_in {
        drop(tunnel);
        inbound.drain();
    }
    let end = soon(inbound.ended.recv()).await.expect("an end");
    (end.err(), got_in)
}

/// The same certificate, but trusting what another trusts.
fn trusting(certificate: WorkloadCertificate, other: &WorkloadCertificate) -> WorkloadCertificate {
    WorkloadCertificate { roots: other.roots.clone(), ..certificate }
}

#[tokio::test]
async fn server_refuses_invalid_client_certificates() {
    let (ca, other_ca, namesake) = (Ca::new(), Ca::named("other"), Ca::new());
    let server = ca.good(SERVER);
    let issue = |claims| ca.issue(CLIENT, claims);
    let two_names = Claims::uris(&[CLIENT, OTHER]);
    let same_twice = Claims::uris(&[CLIENT, CLIENT]);
    let mut no_name = Claims::uris(&[]);
    no_name.names = vec![SanType::DnsName("web.shop".try_into().expect("a name"))];
    let mut for_servers = Claims::of(CLIENT);
    for_servers.usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let rows = [
        ("another CA", trusting(other_ca.good(CLIENT), &server), "UnknownIssuer"),
        ("another CA of the same name", trusting(namesake.good(CLIENT), &server), "BadSignature"),
        ("expired", issue(Claims::of(CLIENT).expired()), "expired"),
        ("not yet valid", issue(Claims::of(CLIENT).not_yet_valid()), "not valid yet"),
        ("two names", issue(two_names), "2 URI names"),
        ("the same name twice", issue(same_twice), "2 URI names"),
        ("only a DNS name", issue(no_name), "0 URI names"),
        ("no SPIFFE ID", issue(Claims::of("https://shop.example/web")), "is not spiffe://"),
        ("another form of SPIFFE ID", issue(Claims::of("spiffe://cluster.local/web")), "is not spiffe://"),
        (
            "another trust domain",
            issue(Claims::of("spiffe://evil.example/ns/shop/sa/web")),
            "expected trust domain cluster.local, got spiffe://evil.example/ns/shop/sa/web",
        ),
        ("for servers only", issue(for_servers), "RequiredEku"),
    ];
    for (name, certificate, why) in rows {
        let config = tls::client_config(&certificate, &[identity(SERVER)]);
        let (error, got_in) = show(&server, config).await;
        let error = error.unwrap_or_else(|| panic!("{name}: was let in"));
        assert!(matches!(error, Error::Handshake { .. }), "{name}: {error:?}");
        assert!(error.chain().contains(why), "{name}: {}", error.chain());
        assert!(!got_in, "{name}");
    }
    let (error, got_in) = show(&server, tls::client_config(&ca.good(CLIENT), &[identity(SERVER)])).await;
    assert!(got_in, "a good client: {error:?}");
    // More names of other kinds do no harm.
    let mut also_dns = Claims::of(CLIENT);
    also_dns.names.push(SanType::DnsName("web.shop".try_into().expect("a name")));
    let config = tls::client_config(&issue(also_dns), &[identity(SERVER)]);
    let (error, got_in) = show(&server, config).await;
    assert!(got_in, "a client with a DNS name too: {error:?}");
}

#[tokio::test]
async fn aliased_trust_domain_is_accepted() {
    let ca = Ca::new();
    let (server, aliases) = (ca.good(SERVER), ["old.example".parse().expect("a trust domain")]);
    let rows = [
        ("the own", CLIENT, true),
        ("the alias", "spiffe://old.example/ns/shop/sa/web", true),
        ("a foreign one", "spiffe://evil.example/ns/shop/sa/web", false),
        ("one that begins like the alias", "spiffe://old.example.evil/ns/shop/sa/web", false),
    ];
    for (name, client, good) in rows {
        let acceptor = TlsAcceptor::from(tls::server_config_with_aliases(&server, &aliases));
        let (listener, address) = listen().await;
        let connector =
            tokio_rustls::TlsConnector::from(tls::client_config(&ca.good(client), &[identity(SERVER)]));
        let (_client, accepted) = tokio::join!(
            async {
                let socket = TcpStream::connect(address).await.expect("a connection");
                connector.connect(address.ip().into(), socket).await
            },
            async {
                let (socket, _) = listener.accept().await.expect("a connection");
                acceptor.accept(socket).await
            }
        );
        assert_eq!(accepted.is_ok(), good, "{name}: {:?}", accepted.err());
    }
}

#[derive(Debug)]
struct Nothing;

impl ResolvesClientCert for Nothing {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn server_refuses_other_protocols() {
    let ca = Ca::new();
    let (server, client) = (ca.good(SERVER), ca.good(CLIENT));
    let good = tls::client_config(&client, &[identity(SERVER)]);
    let change = |change: fn(&mut ClientConfig)| {
        let mut config = (*good).clone();
        change(&mut config);
        Arc::new(config)
    };
    let old = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .expect("TLS 1.2")
        .with_root_certificates(client.roots.clone())
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(client.key.clone())));
    let rows = [
        (
            "no certificate",
            change(|config| config.client_auth_cert_resolver = Arc::new(Nothing)),
            "peer sent no certificates",
        ),
        ("TLS 1.2", Arc::new(old), "Tls12"),
        ("no ALPN", change(|config| config.alpn_protocols.clear()), "failed to negotiate HTTP/2"),
        (
            "HTTP/1.1",
            change(|config| config.alpn_protocols = vec![b"http/1.1".to_vec()]),
            "any known protocol",
        ),
    ];
    for (name, config, why) in rows {
        let (error, got_in) = show(&server, config).await;
        let error = error.unwrap_or_else(|| panic!("{name}: was let in")).chain();
        assert!(error.to_lowercase().contains(&why.to_lowercase()), "{name}: {error}");
        assert!(!got_in, "{name}");
    }
}

/// What a good client says of a server.
async fn meet(config: ServerConfig, client: &WorkloadCertificate) -> Result<Connection, Error> {
    let (listener, address) = listen().await;
    let serving = tokio::spawn(async move {
        let (socket, _) = listener.accept().await.expect("a connection");
        if let Ok(mut stream) = TlsAcceptor::from(Arc::new(config)).accept(socket).await {
            // Until the client goes.
            let _gone = stream.read_to_end(&mut Vec::new()).await;
        }
    });
    let met = connect(address, tls::client_config(client, &[identity(SERVER), identity(OTHER)])).await;
    serving.abort();
    met
}

#[tokio::test]
async fn client_refuses_invalid_server_certificates() {
    let (ca, other_ca, namesake) = (Ca::new(), Ca::named("other"), Ca::new());
    let client = ca.good(CLIENT);
    let issue = |claims| ca.issue(SERVER, claims);
    let mut for_clients = Claims::of(SERVER);
    for_clients.usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let rows = [
        ("another CA", trusting(other_ca.good(SERVER), &client), "UnknownIssuer"),
        ("another CA of the same name", trusting(namesake.good(SERVER), &client), "BadSignature"),
        ("expired", issue(Claims::of(SERVER).expired()), "expired"),
        ("not yet valid", issue(Claims::of(SERVER).not_yet_valid()), "not valid yet"),
        (
            "another identity",
            issue(Claims::of(CLIENT)),
            "identity mismatch: expected one of spiffe://cluster.local/ns/shop/sa/cart, \
             spiffe://cluster.local/ns/shop/sa/mallory, got spiffe://cluster.local/ns/shop/sa/web",
        ),
        ("two names", issue(Claims::uris(&[SERVER, CLIENT])), "2 URI names"),
        ("two expected names", issue(Claims::uris(&[SERVER, OTHER])), "2 URI names"),
        ("no name", issue(Claims::uris(&[])), "0 URI names"),
        ("for clients only", issue(for_clients), "RequiredEku"),
    ];
    for (name, certificate, why) in rows {
        let config = (*tls::server_config(&trusting(certificate, &client))).clone();
        let error = meet(config, &client).await.expect_err(name);
        assert!(matches!(error, Error::Handshake { .. }), "{name}: {error:?}");
        assert!(error.chain().contains(why), "{name}: {}", error.chain());
    }
    for good in [SERVER, OTHER] {
        let config = (*tls::server_config(&ca.good(good))).clone();
        meet(config, &client).await.unwrap_or_else(|error| panic!("{good}: {}", error.chain()));
    }
}

#[tokio::test]
async fn client_refuses_other_protocols() {
    let ca = Ca::new();
    let (server, client) = (ca.good(SERVER), ca.good(CLIENT));
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(server.roots.clone(), provider.clone())
        .build()
        .expect("a verifier");
    let old = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])
        .expect("TLS 1.2")
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(server.key.clone())));
    let mut no_alpn = (*tls::server_config(&server)).clone();
    no_alpn.alpn_protocols.clear();
    for (name, config, why) in
        [("TLS 1.2", old, "ProtocolVersion"), ("no ALPN", no_alpn, "failed to negotiate HTTP/2")]
    {
        let error = meet(config, &client).await.expect_err(name).chain();
        assert!(error.contains(why), "{name}: {error}");
    }
}

#[tokio::test]
async fn negotiated_parameters_are_as_documented() {
    let ca = Ca::new();
    let (server, client) = (ca.good(SERVER), ca.good(CLIENT));
    let (listener, address) = listen().await;
    let config = tls::client_config(&client, &[identity(SERVER)]);
    let connector = tokio_rustls::TlsConnector::from(config);
    let acceptor = TlsAcceptor::from(tls::server_config(&server));
    let (connected, accepted) = tokio::join!(
        async {
            let socket = TcpStream::connect(address).await.expect("a connection");
            connector.connect(address.ip().into(), socket).await.expect("a session")
        },
        async {
            let (socket, _) = listener.accept().await.expect("a connection");
            acceptor.accept(socket).await.expect("a session")
        }
    );
    let (_, session) = accepted.get_ref();
    assert_eq!(session.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    let group = session.negotiated_key_exchange_group().map(rustls::crypto::SupportedKxGroup::name);
    assert_eq!(group, Some(rustls::NamedGroup::X25519MLKEM768));
    assert_eq!(session.server_name(), None, "no SNI");
    let leaf = session.peer_certificates().and_then(<[_]>::first).expect("a certificate");
    assert_eq!(tls::identity(leaf), Ok(identity(CLIENT)));
    assert_eq!(connected.get_ref().1.tls13_tickets_received(), 0, "nothing to resume");
}

#[test]
fn invalid_chains_are_refused() {
    let ca = Ca::new();
    let key = || {
        let key = rcgen::KeyPair::generate().expect("a key");
        rustls_pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into())
    };
    let now = std::time::SystemTime::now();
    let make = |chain: &[&str]| {
        let chain: Vec<String> = chain.iter().map(|pem| (*pem).to_owned()).collect();
        WorkloadCertificate::new(identity(CLIENT), &chain, key(), now, now)
    };
    let pem = ca.pem();
    assert!(matches!(make(&[]), Err(Error::ShortChain { length: 0, .. })));
    assert!(matches!(make(&[&pem]), Err(Error::ShortChain { length: 1, .. })));
    let torn = "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n";
    assert!(matches!(make(&[torn]), Err(Error::ParseChain { .. })));
    assert!(matches!(make(&[&pem, &pem]), Err(Error::LoadCertificate { .. })), "another's key");
}
