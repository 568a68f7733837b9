//! Whether the sockmap engine is right on this very kernel: tried, not read off its version.
//!
//! A flow over loopback for each family, through everything that some kernel does wrongly: bytes that
//! wait before the hand-over, in a buffer of which some were read already; a reader that is slower
//! than its sender; a half-close each way; and the counts at the end.

use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use snisplit_common::abi::SockmapCounter;
use snisplit_common::kernel_bugs::known_bug;
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tracing::level_filters::LevelFilter;

use super::sockmap::Sockmap;
use super::{End, Engine as _, Pair, Socket, Tally};

/// How long all of it may take; it takes about a tenth of a second.
const PATIENCE: Duration = Duration::from_secs(10);
/// More than may be held back for a reader that reads nothing.
const BYTES: usize = 16 << 20;
/// Of what waits before the hand-over: all, and those that were read.
const EARLY: (usize, usize) = (200, 50);

/// Loads the engine and tries it; an error says what is wrong, and whether that is known of this
/// kernel's version. Needs a running tokio.
pub(crate) async fn proved(log: LevelFilter, pins: Option<&Path>) -> Result<Sockmap> {
    let engine = Sockmap::load(log, pins)?;
    let tried = probe(&engine).await;
    engine.verdict().flush_log();
    match (tried, fault()) {
        (Ok(()), _) => Ok(engine),
        (Err(error), Some(known)) => Err(error.context(known)),
        (Err(error), None) => Err(error),
    }
}

/// What is known to be wrong with the version of this kernel.
pub(crate) fn fault() -> Option<&'static str> {
    known_bug(&rustix::system::uname().release().to_string_lossy())
}

async fn probe(engine: &Sockmap) -> Result<()> {
    timeout(PATIENCE, carry(engine, Ipv4Addr::LOCALHOST.into()))
        .await
        .context("a flow over IPv4 stalled")?
        .context("IPv4")?;
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.is_ok() {
        timeout(PATIENCE, carry(engine, Ipv6Addr::LOCALHOST.into()))
            .await
            .context("a flow over IPv6 stalled")?
            .context("IPv6")?;
    }
    Ok(())
}

async fn carry(engine: &Sockmap, at: IpAddr) -> Result<()> {
    let trimmed = engine.verdict().count(SockmapCounter::Trimmed)?;
    let (mut client, ours) = connected(at).await?;
    let (backend, mut server) = connected(at).await?;
    SockRef::from(&server).set_send_buffer_size(64 * 1024)?;
    let early: Vec<u8> = (0..EARLY.0).map(|n| n as u8).collect();
    client.write_all(&early).await?;
    let mut ours = ours;
    while ours.peek(&mut [0; EARLY.0]).await? < EARLY.0 {}
    ours.read_exact(&mut [0; EARLY.1]).await?;
    let tally = Arc::new(Tally::default());
    let pair = Pair::new(ours, (Socket::Tcp(backend), None), Arc::clone(&tally))?;
    let carried = async {
        engine.carry(pair).await.map_err(|back| anyhow::anyhow!("declined: {}", back.reason))
    };
    let peers = async {
        let mut heard = vec![0; EARLY.0 - EARLY.1];
        server.read_exact(&mut heard).await?;
        ensure!(heard == early[EARLY.1..], "bytes that were read already came again");
        slow_download(&mut client, &mut server).await?;
        client.shutdown().await?;
        ensure!(server.read(&mut [0; 8]).await? == 0, "the client's end did not arrive");
        server.shutdown().await?;
        ensure!(client.read(&mut [0; 8]).await? == 0, "the back end's end did not arrive");
        Ok(())
    };
    let (end, ()) = tokio::try_join!(carried, peers)?;
    ensure!(end == End::Closed, "the flow broke: {}", end.name());
    let (counted, due) = (tally.read(), ((EARLY.0 - EARLY.1) as u64, BYTES as u64));
    ensure!(counted == due, "the counts are {counted:?}, not {due:?}");
    ensure!(engine.verdict().count(SockmapCounter::Trimmed)? > trimmed, "nothing was trimmed");
    Ok(())
}

/// The client reads nothing until the back end is stopped: what the kernel and we hold is bounded.
async fn slow_download(client: &mut TcpStream, server: &mut TcpStream) -> Result<()> {
    let sent: Vec<u8> = (0..BYTES / 4).flat_map(|n| (n as u32).to_ne_bytes()).collect();
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
            written.get() < BYTES,
            "a back end is not slowed down by a client that reads nothing"
        );
        let mut heard = vec![0; BYTES];
        client.read_exact(&mut heard).await?;
        ensure!(heard == sent, "bytes were lost, doubled or mixed up behind a slow reader");
        Ok(())
    };
    tokio::try_join!(writing, reading).map(|((), ())| ())
}

/// Who connected, and who was connected to.
async fn connected(at: IpAddr) -> Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind(SocketAddr::new(at, 0)).await?;
    let (there, accepted) =
        tokio::join!(TcpStream::connect(listener.local_addr()?), listener.accept());
    let (there, (here, _)) = (there?, accepted?);
    here.set_nodelay(true)?;
    there.set_nodelay(true)?;
    SockRef::from(&there).set_recv_buffer_size(64 * 1024)?;
    Ok((there, here))
}
