//! Who may talk to whom: a certificate authority for each cluster, a certificate for each node, and
//! mutual TLS 1.3 between nodes.
//!
//! A node's certificate names it and its cluster: `node-<id>.<cluster, 32 hex digits>.highwater`.

use std::{fmt, fs, io, path::Path, path::PathBuf, sync::Arc};

use highwater_core::{ClusterId, NodeId};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ED25519, date_time_ymd,
};
use rustls::{
    RootCertStore,
    client::{Resumption, WebPkiServerVerifier, danger::ServerCertVerifier, verify_server_name},
    crypto::CryptoProvider,
    server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier},
};
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer, ServerName, UnixTime,
    pem::{self, PemObject},
};

/// The application protocol, as TLS negotiates it.
pub const ALPN: &[u8] = b"highwater/1";

/// A certificate and its private key, as PEM.
#[derive(Clone)]
pub struct Pem {
    /// `-----BEGIN CERTIFICATE-----`
    pub cert: String,
    /// `-----BEGIN PRIVATE KEY-----`, PKCS #8. A secret.
    pub key: String,
}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pem").field("cert", &self.cert).finish_non_exhaustive()
    }
}

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{path} cannot be read: {error}. Put the file there, or name another one")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It is not the PEM it should be.
    #[error("the {what} is not PEM of the right kind: {error}. Take the file that `init` made")]
    Pem {
        /// What it should be.
        what: &'static str,
        /// Why not.
        error: pem::Error,
    },
    /// Certificate, key and certificate authority do not belong together, or not to this node.
    #[error(
        "the certificate is not that of node {node} of cluster {cluster}, signed by this cluster's \
         authority: {error}. Take ca.pem, cert.pem and key.pem that `init` made for this node"
    )]
    NotOurs {
        /// This node.
        node: NodeId,
        /// This cluster.
        cluster: ClusterId,
        /// What does not fit.
        error: rustls::Error,
    },
    /// rustls refuses them.
    #[error("the certificates cannot be used: {0}")]
    Unusable(String),
    /// A certificate cannot be made.
    #[error("a certificate cannot be made: {0}")]
    Make(#[from] rcgen::Error),
}

/// The name in a node's certificate.
#[must_use]
pub fn node_name(cluster: ClusterId, node: NodeId) -> String {
    format!("node-{node}.{cluster}.highwater")
}

/// Makes a cluster's certificate authority, with a new key.
///
/// # Errors
/// Where the system gives no randomness.
pub fn make_ca(cluster: ClusterId) -> Result<Pem, TlsError> {
    let key = KeyPair::generate_for(&PKCS_ED25519)?;
    let cert = ca_params(cluster)?.self_signed(&key)?;
    Ok(Pem { cert: cert.pem(), key: key.serialize_pem() })
}

/// Makes a node's certificate, with a new key, signed by what [`make_ca`] made for this cluster.
///
/// # Errors
/// Where `ca` is not this cluster's authority, or the system gives no randomness.
pub fn make_node_cert(ca: &Pem, cluster: ClusterId, node: NodeId) -> Result<Pem, TlsError> {
    let issuer = Issuer::new(ca_params(cluster)?, KeyPair::from_pem(&ca.key)?);
    let key = KeyPair::generate_for(&PKCS_ED25519)?;
    let name = node_name(cluster, node);
    let mut params = params(&name, vec![name.clone()])?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let cert = params.signed_by(&key, &issuer)?;
    let made = Pem { cert: cert.pem(), key: key.serialize_pem() };
    // The issuer is derived from the cluster's id: a foreign authority shows only here.
    NodeTls::from_pem(ca.cert.as_bytes(), made.cert.as_bytes(), made.key.as_bytes())?
        .check(cluster, node)?;
    Ok(made)
}

fn ca_params(cluster: ClusterId) -> Result<CertificateParams, TlsError> {
    let mut params = params(&format!("{cluster}.highwater"), vec![])?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// Certificates do not expire in practice: an expiry would stop all nodes of a cluster at once. A
/// stolen key is answered with a new authority.
fn params(common_name: &str, names: Vec<String>) -> Result<CertificateParams, TlsError> {
    let mut params = CertificateParams::new(names)?;
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, common_name);
    params.distinguished_name = subject;
    params.not_before = date_time_ymd(2000, 1, 1);
    params.not_after = date_time_ymd(2099, 12, 31);
    Ok(params)
}

/// What a node shows to others and what it trusts.
pub struct NodeTls {
    ca: CertificateDer<'static>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl fmt::Debug for NodeTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeTls").finish_non_exhaustive()
    }
}

impl Clone for NodeTls {
    fn clone(&self) -> NodeTls {
        NodeTls { ca: self.ca.clone(), chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

impl NodeTls {
    /// Reads the cluster's certificate authority, the node's certificate and its key from PEM files.
    ///
    /// # Errors
    /// Where a file is missing or is not what it should be.
    pub fn load(ca: &Path, cert: &Path, key: &Path) -> Result<NodeTls, TlsError> {
        let read = |path: &Path| {
            fs::read(path).map_err(|error| TlsError::Read { path: path.to_owned(), error })
        };
        NodeTls::from_pem(&read(ca)?, &read(cert)?, &read(key)?)
    }

    /// The same from PEM in memory.
    ///
    /// # Errors
    /// Where one of them is not what it should be.
    pub fn from_pem(ca: &[u8], cert: &[u8], key: &[u8]) -> Result<NodeTls, TlsError> {
        let wrong = |what| move |error| TlsError::Pem { what, error };
        let ca = CertificateDer::from_pem_slice(ca).map_err(wrong("cluster's authority"))?;
        let chain = CertificateDer::pem_slice_iter(cert)
            .collect::<Result<Vec<_>, _>>()
            .map_err(wrong("node's certificate"))?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(wrong("node's key"))?;
        Ok(NodeTls { ca, chain, key })
    }

    /// Whether the certificate is that of this node, signed by the authority.
    pub(crate) fn check(&self, cluster: ClusterId, node: NodeId) -> Result<(), TlsError> {
        let not_ours = |error| TlsError::NotOurs { node, cluster, error };
        let name = server_name(cluster, node).map_err(not_ours)?;
        let (cert, others) = self
            .chain
            .split_first()
            .ok_or_else(|| not_ours(rustls::Error::NoCertificatesPresented))?;
        let verifier = WebPkiServerVerifier::builder_with_provider(
            self.roots().map_err(not_ours)?,
            provider(),
        )
        .build()
        .map_err(|e| TlsError::Unusable(e.to_string()))?;
        verifier.verify_server_cert(cert, others, &name, &[], UnixTime::now()).map_err(not_ours)?;
        Ok(())
    }

    /// For connections that others dial.
    pub(crate) fn server(&self) -> Result<rustls::ServerConfig, TlsError> {
        let unusable = |e: rustls::Error| TlsError::Unusable(e.to_string());
        let clients = WebPkiClientVerifier::builder_with_provider(
            self.roots().map_err(unusable)?,
            provider(),
        )
        .build()
        .map_err(|e| TlsError::Unusable(e.to_string()))?;
        let mut config = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unusable)?
            .with_client_cert_verifier(clients)
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .map_err(unusable)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        // Every connection proves itself anew: nothing is resumed.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    /// For connections that this node dials.
    pub(crate) fn client(&self) -> Result<rustls::ClientConfig, TlsError> {
        let unusable = |e: rustls::Error| TlsError::Unusable(e.to_string());
        let mut config = rustls::ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unusable)?
            .with_root_certificates(self.roots().map_err(unusable)?)
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .map_err(unusable)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        Ok(config)
    }

    fn roots(&self) -> Result<Arc<RootCertStore>, rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.clone())?;
        Ok(Arc::new(roots))
    }
}

/// Whether a certificate, whose chain is verified already, names this node of this cluster.
pub(crate) fn names(cert: &CertificateDer<'_>, cluster: ClusterId, node: NodeId) -> bool {
    let Ok(name) = server_name(cluster, node) else { return false };
    ParsedCertificate::try_from(cert).is_ok_and(|cert| verify_server_name(&cert, &name).is_ok())
}

fn server_name(cluster: ClusterId, node: NodeId) -> Result<ServerName<'static>, rustls::Error> {
    ServerName::try_from(node_name(cluster, node))
        .map_err(|e| rustls::Error::General(e.to_string()))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: ClusterId = ClusterId(0x0123_4567_89ab_cdef_0011_2233_4455_6677);
    const THEIRS: ClusterId = ClusterId(7);

    fn tls(ca: &Pem, node: &Pem) -> NodeTls {
        NodeTls::from_pem(ca.cert.as_bytes(), node.cert.as_bytes(), node.key.as_bytes())
            .expect("what was made")
    }

    #[test]
    fn a_certificate_is_of_one_node_of_one_cluster() {
        let ca = make_ca(OURS).expect("an authority");
        let node = make_node_cert(&ca, OURS, NodeId(2)).expect("a certificate");
        let tls = tls(&ca, &node);
        tls.check(OURS, NodeId(2)).expect("its own");
        assert!(matches!(tls.check(OURS, NodeId(1)), Err(TlsError::NotOurs { .. })));
        assert!(matches!(tls.check(OURS, NodeId(22)), Err(TlsError::NotOurs { .. })));
        assert!(matches!(tls.check(THEIRS, NodeId(2)), Err(TlsError::NotOurs { .. })));
        assert!(names(&tls.chain[0], OURS, NodeId(2)));
        assert!(!names(&tls.chain[0], OURS, NodeId(1)));
        assert!(!names(&tls.chain[0], THEIRS, NodeId(2)));
    }

    #[test]
    fn an_authority_signs_for_its_own_cluster_only() {
        let (ours, theirs) = (make_ca(OURS).expect("one"), make_ca(THEIRS).expect("another"));
        let again = make_ca(OURS).expect("a second of the same cluster");
        assert!(matches!(make_node_cert(&theirs, OURS, NodeId(1)), Err(TlsError::NotOurs { .. })));
        let node = make_node_cert(&ours, OURS, NodeId(1)).expect("a certificate");
        for other in [theirs, again] {
            let mixed = tls(&other, &node);
            assert!(matches!(mixed.check(OURS, NodeId(1)), Err(TlsError::NotOurs { .. })));
        }
    }

    #[test]
    fn a_key_that_is_not_the_certificates_is_refused() {
        let ca = make_ca(OURS).expect("an authority");
        let one = make_node_cert(&ca, OURS, NodeId(1)).expect("a certificate");
        let two = make_node_cert(&ca, OURS, NodeId(2)).expect("a certificate");
        let mixed = tls(&ca, &Pem { cert: one.cert, key: two.key });
        assert!(matches!(mixed.server(), Err(TlsError::Unusable(_))));
        assert!(matches!(mixed.client(), Err(TlsError::Unusable(_))));
    }

    #[test]
    fn what_is_no_pem_is_named() {
        let ca = make_ca(OURS).expect("an authority");
        let refused = |ca: &str, cert: &str, key: &str| {
            NodeTls::from_pem(ca.as_bytes(), cert.as_bytes(), key.as_bytes())
                .expect_err("no PEM")
                .to_string()
        };
        assert!(refused("", &ca.cert, &ca.key).contains("authority"));
        assert!(refused(&ca.cert, &ca.cert, "x").contains("node's key"));
        let missing = NodeTls::load(Path::new("/nonexistent/ca.pem"), Path::new(""), Path::new(""));
        assert!(missing.expect_err("no file").to_string().contains("/nonexistent/ca.pem"));
    }

    #[test]
    fn keys_do_not_print() {
        let ca = make_ca(OURS).expect("an authority");
        let secret = ca.key.lines().nth(1).expect("a line of the key").to_owned();
        let node = tls(&ca, &ca);
        assert!(!format!("{ca:?} {node:?}").contains(&secret));
    }
}
