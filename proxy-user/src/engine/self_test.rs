//! Self-test of the sockmap engine on the running kernel.
//!
//! The test runs a flow over loopback, once for IPv4 and once for IPv6. It goes through all that some
//! kernel version does wrong:
//!
//! - Bytes wait in the client's socket before the engine has it, in a buffer that was read in part.
//! - The client reads more slowly than the back end sends.
//! - Each peer half-closes.
//! - The byte counts at the end must be exact.

use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use snisplit_common::abi::sockmap::SockmapCounter;
use snisplit_common::kernel_bugs::known_bug;
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tracing::level_filters::LevelFilter;

use super::sockmap::SockmapEngine;
use super::{Engine as _, FlowCounters, FlowEnd, Socket, SocketPair};

/// Time limit for each address family. A test takes about 0.1 s.
const TEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of the download: more than the sockets hold for a client that reads nothing.
const DOWNLOAD_LEN: usize = 16 << 20;
/// Bytes that arrive before the engine has the sockets.
const QUEUED_LEN: usize = 200;
/// How many of these are read before the engine has the sockets.
const READ_LEN: usize = 50;

/// Loads the engine and tests it. Needs a tokio runtime.
///
/// # Errors
/// Fails if the engine does not load or does not pass. The error names a known bug of this kernel.
pub(crate) async fn load_and_test(log: LevelFilter, pins: Option<&Path>) -> Result<SockmapEngine> {
    let engine = SockmapEngine::load(log, pins)?;
    let result = run(&engine).await;
    engine.program().flush_log();
    match (result, known_kernel_bug()) {
        (Ok(()), _) => Ok(engine),
        (Err(error), Some(known)) => Err(error.context(known)),
        (Err(error), None) => Err(error),
    }
}

/// The known bug of this kernel version that affects the sockmap engine, if there is one.
pub(crate) fn known_kernel_bug() -> Option<&'static str> {
    known_bug(&rustix::system::uname().release().to_string_lossy())
}

async fn run(engine: &SockmapEngine) -> Result<()> {
    timeout(TEST_TIMEOUT, test_flow(engine, Ipv4Addr::LOCALHOST.into()))
        .await
        .context("a flow over IPv4 stalled")?
        .context("IPv4")?;
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.is_ok() {
        timeout(TEST_TIMEOUT, test_flow(engine, Ipv6Addr::LOCALHOST.into()))
            .await
            .context("a flow over IPv6 stalled")?
            .context("IPv6")?;
    }
    Ok(())
}

async fn test_flow(engine: &SockmapEngine, address: IpAddr) -> Result<()> {
    let trimmed_before = engine.program().counter(SockmapCounter::Trimmed)?;
    let (mut client, accepted) = connect_loopback(address).await?;
    let (backend, mut server) = connect_loopback(address).await?;
    SockRef::from(&server).set_send_buffer_size(64 * 1024)?;
    let early: Vec<u8> = (0..QUEUED_LEN).map(|n| n as u8).collect();
    client.write_all(&early).await?;
    let mut accepted = accepted;
    while accepted.peek(&mut [0; QUEUED_LEN]).await? < QUEUED_LEN {}
    accepted.read_exact(&mut [0; READ_LEN]).await?;
    let counters = Arc::new(FlowCounters::default());
    let pair = SocketPair::new(accepted, Socket::Tcp(backend), Arc::clone(&counters))?;
    let engine_side = async {
        engine
            .carry(pair)
            .await
            .map_err(|declined| anyhow::anyhow!("declined: {}", declined.reason.label()))
    };
    let peers = async {
        let mut received = vec![0; QUEUED_LEN - READ_LEN];
        server.read_exact(&mut received).await?;
        ensure!(received == early[READ_LEN..], "bytes that were read already came again");
        test_slow_download(&mut client, &mut server).await?;
        client.shutdown().await?;
        ensure!(server.read(&mut [0; 8]).await? == 0, "the client's end did not arrive");
        server.shutdown().await?;
        ensure!(client.read(&mut [0; 8]).await? == 0, "the back end's end did not arrive");
        Ok(())
    };
    let (end, ()) = tokio::try_join!(engine_side, peers)?;
    ensure!(end == FlowEnd::Closed, "the flow broke: {}", end.label());
    let (counted, expected) =
        (counters.totals(), ((QUEUED_LEN - READ_LEN) as u64, DOWNLOAD_LEN as u64));
    ensure!(counted == expected, "the counts are {counted:?}, not {expected:?}");
    ensure!(
        engine.program().counter(SockmapCounter::Trimmed)? > trimmed_before,
        "nothing was trimmed"
    );
    Ok(())
}

/// Downloads to a client that reads nothing until the back end cannot send more. What the sockets hold
/// must be bounded.
async fn test_slow_download(client: &mut TcpStream, server: &mut TcpStream) -> Result<()> {
    let sent: Vec<u8> = (0..DOWNLOAD_LEN / 4).flat_map(|n| (n as u32).to_ne_bytes()).collect();
    let written = Cell::new(0);
    let writing = async {
        for chunk in sent.chunks(64 * 1024) {
            server.write_all(chunk).await?;
            written.set(written.get() + chunk.len());
        }
        anyhow::Ok(())
    };
    let reading = async {
        let mut before = usize::MAX;
        while std::mem::replace(&mut before, written.get()) != written.get() {
            sleep(Duration::from_millis(10)).await;
        }
        ensure!(
            written.get() < DOWNLOAD_LEN,
            "a back end is not slowed down by a client that reads nothing"
        );
        let mut received = vec![0; DOWNLOAD_LEN];
        client.read_exact(&mut received).await?;
        ensure!(received == sent, "bytes were lost, doubled or mixed up behind a slow reader");
        Ok(())
    };
    tokio::try_join!(writing, reading).map(|((), ())| ())
}

/// Connects two sockets over loopback: the connecting one, and the accepted one.
async fn connect_loopback(address: IpAddr) -> Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind(SocketAddr::new(address, 0)).await?;
    let (connecting, accepted) =
        tokio::join!(TcpStream::connect(listener.local_addr()?), listener.accept());
    let (connected, (accepted, _)) = (connecting?, accepted?);
    accepted.set_nodelay(true)?;
    connected.set_nodelay(true)?;
    SockRef::from(&connected).set_recv_buffer_size(64 * 1024)?;
    Ok((connected, accepted))
}
