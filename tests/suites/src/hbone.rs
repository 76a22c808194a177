//! An HBONE peer of the tests, with any certificate: for what the daemons must refuse and for what they must
//! accept.
//!
//! Independent of the daemons' implementation: TLS by rustls, HTTP/2 by h2, nothing of `ambit-hbone`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ambit_harness::{Lab, Place};
use anyhow::{Context, Result};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;

use crate::talk::TIMEOUT;

/// The tunnel's port on every pod.
pub const PORT: u16 = 15008;

/// A certificate authority.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
}

/// A certificate with its chain and key.
#[derive(Debug)]
pub struct Certificate {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

/// When a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    Now,
    Expired,
    NotYet,
}

impl Authority {
    /// The lab's own: its key lies in the controller's state folder.
    pub fn of(lab: &Lab) -> Result<Self> {
        let file = lab.dir().join("state/ca.pem");
        let pem = std::fs::read(&file).with_context(|| format!("failed to read {}", file.display()))?;
        let root = CertificateDer::from_pem_slice(&pem).context("failed to read its certificate")?;
        let key = PrivateKeyDer::from_pem_slice(&pem).context("failed to read its key")?;
        Ok(Self { issuer: Issuer::from_ca_cert_der(&root, KeyPair::try_from(&key)?)?, root })
    }

    /// Another authority with the same name.
    pub fn impostor() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::OrganizationName, "cluster.local");
        let key = KeyPair::generate()?;
        let root = params.self_signed(&key)?.der().clone();
        Ok(Self { issuer: Issuer::new(params, key), root })
    }

    /// A certificate for an identity (`spiffe://…`), or for none.
    pub fn issue(&self, identity: Option<&str>, validity: Validity) -> Result<Certificate> {
        let name = identity.map(|identity| Ok::<_, anyhow::Error>(SanType::URI(identity.try_into()?)));
        let (leaf, key) = self.sign(name.transpose()?, validity)?;
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(|error| anyhow::anyhow!("{error}"))?;
        Ok(Certificate { chain: vec![leaf.der().clone(), self.root.clone()], key })
    }

    /// A certificate for a server of this name, and its key, as PEM.
    pub fn issue_for_server(&self, name: &str) -> Result<(String, String)> {
        let (leaf, key) = self.sign(Some(SanType::DnsName(name.try_into()?)), Validity::Now)?;
        Ok((leaf.pem(), key.serialize_pem()))
    }

    fn sign(&self, name: Option<SanType>, validity: Validity) -> Result<(rcgen::Certificate, KeyPair)> {
        let mut params = CertificateParams::default();
        params.subject_alt_names.extend(name);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let years = match validity {
            Validity::Now => (2020, 2060),
            Validity::Expired => (2020, 2021),
            Validity::NotYet => (2060, 2061),
        };
        (params.not_before, params.not_after) = (date_time_ymd(years.0, 1, 1), date_time_ymd(years.1, 1, 1));
        let key = KeyPair::generate()?;
        Ok((params.signed_by(&key, &self.issuer)?, key))
    }
}

/// Runs an async test part inside a place, on a thread of its own, with a deadline.
pub fn inside<T: Send>(place: &Place, work: impl Future<Output = Result<T>> + Send) -> Result<T> {
    place.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            tokio::time::timeout(TIMEOUT, work).await.context("failed to finish in time")?
        })
    })?
}

/// Asks for a tunnel: the status of the answer. An error when there is no tunnel's peer at all.
pub fn request(
    place: &Place,
    peer: SocketAddr,
    certificate: Option<&Certificate>,
    authority: &str,
) -> Result<StatusCode> {
    inside(place, async {
        let (mut sender, connection) = h2::client::handshake(handshake(peer, certificate).await?)
            .await
            .context("failed HTTP/2 handshake")?;
        let exchange = async {
            let request = Request::builder().method(Method::CONNECT).uri(authority).body(())?;
            let (response, _body) =
                sender.send_request(request, false).context("failed to send the request")?;
            Ok(response.await.context("failed to read the answer")?.status())
        };
        tokio::select! {
            status = exchange => status,
            ended = connection => {
                ended.context("failed to keep the connection")?;
                anyhow::bail!("the connection ended before there was an answer")
            }
        }
    })
}

/// The certificate that a tunnel's peer shows.
pub fn shown_certificate(place: &Place, peer: SocketAddr, own: &Certificate) -> Result<Vec<u8>> {
    inside(place, async {
        let tls = handshake(peer, Some(own)).await?;
        let chain = tls.get_ref().1.peer_certificates().context("the peer shows no certificate")?;
        Ok(chain.first().context("an empty chain")?.to_vec())
    })
}

/// The TLS connection under tunnels, on which a test sends what it likes.
pub async fn handshake(peer: SocketAddr, certificate: Option<&Certificate>) -> Result<TlsStream<TcpStream>> {
    let config = client(certificate)?;
    let stream = TcpStream::connect(peer).await.context("failed to connect")?;
    let name = ServerName::IpAddress(peer.ip().into());
    tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .context("failed TLS handshake")
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn client(certificate: Option<&Certificate>) -> Result<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider())));
    let mut config = match certificate {
        Some(certificate) => {
            builder.with_client_auth_cert(certificate.chain.clone(), certificate.key.clone_key())?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.enable_sni = false;
    Ok(config)
}

/// Accepts any server: the servers are what is tested.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A peer that plays a pod's daemon: it accepts tunnels with the certificate it was given, and answers each
/// with a word.
#[derive(Debug)]
pub struct Impostor {
    requests: Arc<AtomicUsize>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// What the impostor sends in every tunnel.
pub const WORD: &[u8] = b"impostor\n";

impl Impostor {
    /// Listens on the tunnel's port of a pod that no daemon takes care of.
    pub fn start(place: &Place, mesh: &Authority, certificate: &Certificate) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(mesh.root.clone())?;
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build()?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(clients)
            .with_single_cert(certificate.chain.clone(), certificate.key.clone_key())?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        let requests = Arc::new(AtomicUsize::new(0));
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let address = SocketAddr::new(place.v4.into(), PORT);
        let listener = place.run(|| std::net::TcpListener::bind(address))??;
        listener.set_nonblocking(true)?;
        let counter = Arc::clone(&requests);
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped => {}
                    ended = accept(listener, Arc::new(config), counter) => {
                        ended.expect("an impostor can accept");
                    }
                }
            });
        });
        Ok(Self { requests, stop: Some(stop), thread: Some(thread) })
    }

    /// How many tunnels it was asked for.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(
    listener: std::net::TcpListener,
    config: Arc<ServerConfig>,
    requests: Arc<AtomicUsize>,
) -> Result<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        let (config, requests) = (Arc::clone(&config), Arc::clone(&requests));
        // A client that ends the connection because of the certificate does what is expected.
        tokio::spawn(async move { serve(stream, config, &requests).await.ok() });
    }
}

async fn serve(stream: TcpStream, config: Arc<ServerConfig>, requests: &AtomicUsize) -> Result<()> {
    let tls = tokio_rustls::TlsAcceptor::from(config).accept(stream).await?;
    let mut connection = h2::server::handshake(tls).await?;
    while let Some(request) = connection.accept().await {
        let (_request, mut respond) = request?;
        requests.fetch_add(1, Ordering::Relaxed);
        let mut body = respond.send_response(Response::new(()), false)?;
        body.send_data(Bytes::from_static(WORD), true)?;
    }
    Ok(())
}
