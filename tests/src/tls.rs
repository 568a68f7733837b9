//! A TLS client whose hello can be cut as one likes, and that takes any certificate.

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

/// How the first flight goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunking {
    /// As TLS made it.
    Whole,
    /// A segment for each byte.
    BytePerSegment,
    /// A record for each byte of the message, RFC 8446 §5.1.
    BytePerRecord,
}

/// Connects with this ALPN, whatever the certificate, the hello cut so.
pub fn client_connection(name: &str, alpn: &[&str]) -> ClientConnection {
    client_with_versions(rustls::DEFAULT_VERSIONS, name, alpn)
}

/// The same, of these versions.
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

/// What a server of this name needs, signed by itself.
pub fn self_signed_server(name: &str) -> Arc<ServerConfig> {
    let own = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(own.signing_key.serialize_der());
    let provider = Arc::new(default_provider());
    let builder =
        ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.unwrap().with_no_client_auth();
    Arc::new(builder.with_single_cert(vec![own.cert.into()], key.into()).unwrap())
}

/// Sends the client's first flight.
pub fn send_client_hello(tls: &mut ClientConnection, mut stream: &TcpStream, chunking: Chunking) {
    let mut flight = Vec::new();
    tls.write_tls(&mut flight).unwrap();
    let chunks: Vec<Vec<u8>> = match chunking {
        Chunking::Whole => vec![flight],
        Chunking::BytePerSegment => flight.iter().map(|byte| vec![*byte]).collect(),
        Chunking::BytePerRecord => {
            let header = &flight[..3];
            flight[5..].iter().map(|byte| [header, &[0, 1, *byte]].concat()).collect()
        }
    };
    chunks.iter().for_each(|piece| stream.write_all(piece).unwrap());
}

/// Completes a TLS handshake, then reads until the server ends the stream.
///
/// # Errors
///
/// The error of the TLS library or of the socket, such as an alert.
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
