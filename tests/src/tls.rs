//! A TLS client that sends its ClientHello in chosen chunks and accepts any certificate.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, ServerConfig, SignatureScheme,
    SupportedProtocolVersion,
};

/// How a client sends its ClientHello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunking {
    /// In one write.
    Whole,
    /// One byte in each segment.
    BytePerSegment,
    /// Eight bytes of the handshake message in each record (RFC 8446 §5.1).
    ShortRecords,
}

/// Creates a client connection with these ALPN protocols, which accepts any certificate.
pub fn client_connection(name: &str, alpn: &[&str]) -> ClientConnection {
    client_with_versions(rustls::DEFAULT_VERSIONS, name, alpn)
}

/// Creates a client connection with these TLS versions and ALPN protocols, which accepts any certificate.
pub fn client_with_versions(
    versions: &[&'static SupportedProtocolVersion],
    name: &str,
    alpn: &[&str],
) -> ClientConnection {
    let provider = Arc::new(default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions);
    let verifier = Arc::new(NoCertVerification);
    let mut config = builder
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|one| one.as_bytes().to_vec()).collect();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    ClientConnection::new(Arc::new(config), name).unwrap()
}

/// Creates the configuration of a server with a self-signed certificate for this name.
pub fn self_signed_server(name: &str) -> Arc<ServerConfig> {
    let own = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(own.signing_key.serialize_der());
    let provider = Arc::new(default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.unwrap().with_no_client_auth();
    Arc::new(builder.with_single_cert(vec![own.cert.into()], key.into()).unwrap())
}

/// Sends the ClientHello.
pub fn send_client_hello(tls: &mut ClientConnection, mut stream: &TcpStream, chunking: Chunking) {
    let mut hello = Vec::new();
    tls.write_tls(&mut hello).unwrap();
    let chunks: Vec<Vec<u8>> = match chunking {
        Chunking::Whole => vec![hello],
        Chunking::BytePerSegment => hello.iter().map(|byte| vec![*byte]).collect(),
        Chunking::ShortRecords => {
            let header = &hello[..3];
            let record = |part: &[u8]| [header, &[0, part.len() as u8], part].concat();
            hello[5..].chunks(8).map(record).collect()
        }
    };
    chunks.iter().for_each(|chunk| stream.write_all(chunk).unwrap());
}

/// Completes the handshake, and reads to the end of stream.
///
/// # Errors
///
/// Fails if the handshake fails, or the stream ends without `close_notify`.
pub fn handshake_and_read_to_end(
    tls: &mut ClientConnection,
    mut stream: &TcpStream,
) -> io::Result<Vec<u8>> {
    while tls.is_handshaking() {
        tls.complete_io(&mut stream)?;
    }
    let mut received = Vec::new();
    let _until_it_ends = rustls::Stream::new(tls, &mut stream).read_to_end(&mut received)?;
    Ok(received)
}

/// Accepts any certificate.
#[derive(Debug)]
struct NoCertVerification;

impl ServerCertVerifier for NoCertVerification {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider().signature_verification_algorithms.supported_schemes()
    }
}
