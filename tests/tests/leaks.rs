//! After flows that ended in every way there is, nothing of them is left: no descriptor, no task's
//! memory, no entry in the kernel's maps. `SNISPLIT_LEAK_FLOWS` is how many; CI runs a few.

//@ engines: named

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use snisplit_tests::agent::{self, Agent};
use snisplit_tests::client_hello::ClientHello;
use snisplit_tests::flow::ENGINES;
use snisplit_tests::kernel;
use snisplit_tests::lab::{Lab, backend};
use snisplit_tests::stream::{close_with_reset, connect, listen, read_all, shutdown_write};
use snisplit_tests::wait::{default_timeout, sleep_for, wait_until};

/// Bytes that the agent's memory may grow by.
const MAX_GROWTH: u64 = 8 << 20;

/// Clients at once, and as many back ends.
const CONCURRENT_CLIENTS: usize = 16;

/// How a flow ends. The first byte behind the hello tells the back end.
#[derive(Clone, Copy)]
enum FlowEnding {
    ClientCloses,
    BackendCloses,
    ClientResets,
    BackendResets,
    /// A reset in the middle of bytes that come from both sides.
    ResetUnderLoad,
}

const ENDINGS: [FlowEnding; 5] = [
    FlowEnding::ClientCloses,
    FlowEnding::BackendCloses,
    FlowEnding::ClientResets,
    FlowEnding::BackendResets,
    FlowEnding::ResetUnderLoad,
];

/// The client's part.
fn run_client(lab: &Lab, hello: &[u8], number: usize) {
    let mut stream = connect(lab, agent::address());
    let ending = number % ENDINGS.len();
    stream.write_all(&[hello, &[ending as u8]].concat()).unwrap();
    stream.read_exact(&mut [0; 1]).unwrap();
    match ENDINGS[ending] {
        FlowEnding::ClientCloses | FlowEnding::BackendCloses => {
            if matches!(ENDINGS[ending], FlowEnding::BackendCloses) {
                assert_eq!(read_all(&stream), b"");
            }
            shutdown_write(&stream);
            assert_eq!(read_all(&stream), b"");
        }
        FlowEnding::BackendResets => assert!(stream.read(&mut [0; 1]).is_err()),
        FlowEnding::ClientResets => close_with_reset(stream),
        FlowEnding::ResetUnderLoad => {
            let _until_it_breaks = stream.write_all(&[0; 20_000]);
            close_with_reset(stream);
        }
    }
}

/// The back ends' part.
fn serve(listener: &TcpListener, hello: usize, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => serve_connection(stream, hello),
            Err(_) => sleep_for(Duration::from_millis(1)),
        }
    }
}

fn serve_connection(mut stream: TcpStream, hello: usize) {
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(default_timeout())).unwrap();
    let mut first = vec![0; hello + 1];
    stream.read_exact(&mut first).unwrap();
    stream.write_all(b"!").unwrap();
    match ENDINGS[usize::from(first[hello])] {
        FlowEnding::ClientCloses | FlowEnding::BackendCloses => shutdown_write(&stream),
        FlowEnding::BackendResets => return close_with_reset(stream),
        FlowEnding::ClientResets => {}
        FlowEnding::ResetUnderLoad => _ = stream.write_all(&[0; 20_000]),
    }
    if let Err(error) = stream.read_to_end(&mut Vec::new()) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "a flow that hangs");
    }
}

/// Has all these flows come and go.
fn run_flows(lab: &Lab, listener: &TcpListener, hello: &[u8], flows: usize) {
    let (next, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let visits = || {
        while let number @ 0.. = next.fetch_add(1, Ordering::Relaxed)
            && number < flows
        {
            run_client(lab, hello, number);
        }
    };
    thread::scope(|scope| {
        (0..CONCURRENT_CLIENTS * 2)
            .for_each(|_| _ = scope.spawn(|| serve(listener, hello.len(), &over)));
        let clients: Vec<_> = (0..CONCURRENT_CLIENTS).map(|_| scope.spawn(visits)).collect();
        let ended: Vec<_> = clients.into_iter().map(thread::ScopedJoinHandle::join).collect();
        over.store(true, Ordering::Relaxed);
        assert!(ended.into_iter().all(|one| one.is_ok()));
    });
}

/// What the agent's memory grows by while as many flows come and go, again until it hardly does, but three times at
/// most: a leak never ends. On packet what has ended is remembered for a minute.
fn memory_growth(agent: &Agent, flows: impl Fn()) -> Vec<u64> {
    let mut grown = Vec::new();
    while grown.len() < 3 && grown.last().is_none_or(|bytes| *bytes >= MAX_GROWTH) {
        let before = agent.resident_bytes();
        flows();
        grown.push(agent.resident_bytes().saturating_sub(before));
    }
    grown
}

fn check_engine(engine: &'static str, flows: usize) {
    let lab = Lab::new();
    // The agent's addresses for dialling are used up sooner than TIME_WAIT ends.
    let reuse = || std::fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1");
    lab.in_client(reuse).unwrap();
    lab.in_proxy(reuse).unwrap();
    let agent = Agent::start(&lab, &["--engine", engine, "--route", "a.test=10.91.2.2:8001"]);
    let listener = listen(&lab, backend(8001));
    listener.set_nonblocking(true).unwrap();
    let hello = ClientHello::new().sni(b"a.test").encode();
    let descriptors =
        || ["socket:", "anon_inode:", "pipe:"].map(|kind| agent.open_descriptors(kind));
    let [sockets, others, pipes] = descriptors();

    let (first, rest) = (flows / 5, flows - flows / 5);
    run_flows(&lab, &listener, &hello, first);
    let grown = memory_growth(&agent, || run_flows(&lab, &listener, &hello, rest));
    assert!(grown.last().unwrap() < &MAX_GROWTH, "{engine}, by {grown:?} bytes");
    let flows = first + rest * grown.len();
    let others_flows = (0..flows).filter(|_| agent.next_record()["engine"] != engine).count();
    // A peer that ends the flow with its first words leaves packets nothing to be translated for.
    let allowed = if engine == "packet" { flows / 10 } else { 0 };
    assert!(others_flows <= allowed, "{others_flows} flows were another engine's");
    // Splice keeps a pipe for each direction that was ever busy at once, those of other engines' flows too.
    let pool = if engine == "splice" || others_flows > 0 { 4 * CONCURRENT_CLIENTS } else { 0 };
    let mut last = [0; 3];
    wait_until("every descriptor to be closed", || {
        let now = descriptors();
        if last != now {
            eprintln!(
                "{engine}: sockets, others, pipes {now:?}; {:?} before",
                [sockets, others, pipes]
            );
            last = now;
        }
        ((now[0], now[1]) == (sockets, others) && now[2] <= pipes + pool).then_some(())
    });
    if engine == "sockmap" {
        assert_eq!(kernel::sockmap_entry_count(agent.pid()), 0);
    }
}

#[test]
fn ended_flows_leave_no_resources() {
    let flows = std::env::var("SNISPLIT_LEAK_FLOWS").ok().and_then(|text| text.parse().ok());
    for engine in ENGINES {
        check_engine(engine, flows.unwrap_or(2_000));
    }
}
