//! TLS towards one upstream: whom it is taken for, and what proves it.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_rustls::TlsConnector;

/// TLS towards one upstream.
#[derive(Clone)]
pub struct Tls {
    pub(super) connector: TlsConnector,
    /// Asked for, and to be proved, in place of the URL's host.
    pub(super) server_name: Option<ServerName<'static>>,
}

/// With certificate authorities of its own, or the system's. A certificate of `ca_file` that the upstream itself shows
/// is taken as it is, whatever it says of its names, its uses and its time: nobody else has its key, and the file's owner
/// named this very one.
pub fn tls(ca_file: Option<&Path>, server_name: Option<&str>) -> io::Result<Tls> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = verifier(ca_file, &provider)?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let server_name = server_name.map(|name| ServerName::try_from(name.to_owned()).map_err(io::Error::other));
    Ok(Tls { connector: TlsConnector::from(Arc::new(config)), server_name: server_name.transpose()? })
}

pub(super) fn verifier(
    ca_file: Option<&Path>,
    provider: &Arc<CryptoProvider>,
) -> io::Result<Arc<dyn ServerCertVerifier>> {
    let mut roots = RootCertStore::empty();
    let mut pinned = Vec::new();
    if let Some(path) = ca_file {
        let told = |error: &dyn std::fmt::Display| io::Error::other(format!("ca_file {}: {error}", path.display()));
        for certificate in CertificateDer::pem_file_iter(path).map_err(|error| told(&error))? {
            let certificate = certificate.map_err(|error| told(&error))?;
            roots.add(certificate.clone()).map_err(|error| told(&error))?;
            pinned.push(certificate);
        }
    } else {
        let found = rustls_native_certs::load_native_certs();
        let (added, _) = roots.add_parsable_certificates(found.certs);
        if added == 0 {
            return Err(io::Error::other(
                "the system has no certificate authorities; install ca-certificates or set ca_file",
            ));
        }
    }
    let chains = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
        .build()
        .map_err(io::Error::other)?;
    Ok(Arc::new(Verifier { pinned, chains, provider: Arc::clone(provider) }))
}

/// Takes what is pinned, and judges the rest as everybody does. That the other side has the certificate's key is proved
/// by its signature in either case.
#[derive(Debug)]
struct Verifier {
    pinned: Vec<CertificateDer<'static>>,
    chains: Arc<WebPkiServerVerifier>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.pinned.iter().any(|pinned| pinned == end_entity) {
            return Ok(ServerCertVerified::assertion());
        }
        self.chains.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
