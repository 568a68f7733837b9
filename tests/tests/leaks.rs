//! After flows that ended in every way there is, nothing of them is left: no descriptor, no task's
//! memory, no entry in the kernel's maps. `SNISPLIT_LEAKS` is how many; CI runs a few.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use snisplit_tests::agent::{self, Agent};
use snisplit_tests::flow::ENGINES;
use snisplit_tests::hello::Hello;
use snisplit_tests::kernel;
use snisplit_tests::lab::{Lab, backend};
use snisplit_tests::stream::{connect, finish, listen, read_all, reset};
use snisplit_tests::wait::{pass, patience, until};

/// Bytes that the agent's memory may grow by.
const GROWTH: u64 = 8 << 20;

/// Clients at once, and as many back ends.
const AT_ONCE: usize = 16;

/// How a flow ends. The first byte behind the hello tells the back end.
#[derive(Clone, Copy)]
enum Ending {
    ClientCloses,
    BackendCloses,
    ClientResets,
    BackendResets,
    /// A reset in the middle of bytes that come from both sides.
    Crash,
}

const ENDINGS: [Ending; 5] = [
    Ending::ClientCloses,
    Ending::BackendCloses,
    Ending::ClientResets,
    Ending::BackendResets,
    Ending::Crash,
];

/// The client's part.
fn visit(lab: &Lab, hello: &[u8], number: usize) {
    let mut stream = connect(lab, agent::address());
    let ending = number % ENDINGS.len();
    stream.write_all(&[hello, &[ending as u8]].concat()).unwrap();
    stream.read_exact(&mut [0; 1]).unwrap();
    match ENDINGS[ending] {
        Ending::ClientCloses | Ending::BackendCloses => {
            if matches!(ENDINGS[ending], Ending::BackendCloses) {
                assert_eq!(read_all(&stream), b"");
            }
            finish(&stream);
            assert_eq!(read_all(&stream), b"");
        }
        Ending::BackendResets => assert!(stream.read(&mut [0; 1]).is_err()),
        Ending::ClientResets => reset(stream),
        Ending::Crash => {
            let _until_it_breaks = stream.write_all(&[0; 20_000]);
            reset(stream);
        }
    }
}

/// The back ends' part.
fn serve(listener: &TcpListener, hello: usize, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => receive(stream, hello),
            Err(_) => pass(Duration::from_millis(1)),
        }
    }
}

fn receive(mut stream: TcpStream, hello: usize) {
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(patience())).unwrap();
    let mut first = vec![0; hello + 1];
    stream.read_exact(&mut first).unwrap();
    stream.write_all(b"!").unwrap();
    match ENDINGS[usize::from(first[hello])] {
        Ending::ClientCloses | Ending::BackendCloses => finish(&stream),
        Ending::BackendResets => return reset(stream),
        Ending::ClientResets => {}
        Ending::Crash => _ = stream.write_all(&[0; 20_000]),
    }
    if let Err(error) = stream.read_to_end(&mut Vec::new()) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "a flow that hangs");
    }
}

/// Has all these flows come and go.
fn batch(lab: &Lab, listener: &TcpListener, hello: &[u8], flows: usize) {
    let (next, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let visits = || {
        while let number @ 0.. = next.fetch_add(1, Ordering::Relaxed)
            && number < flows
        {
            visit(lab, hello, number);
        }
    };
    thread::scope(|scope| {
        (0..AT_ONCE * 2).for_each(|_| _ = scope.spawn(|| serve(listener, hello.len(), &over)));
        let clients: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(visits)).collect();
        let ended: Vec<_> = clients.into_iter().map(thread::ScopedJoinHandle::join).collect();
        over.store(true, Ordering::Relaxed);
        assert!(ended.into_iter().all(|one| one.is_ok()));
    });
}

/// What the agent's memory grows by while as many flows come and go, again until it hardly does, but three times at
/// most: a leak never ends. On packet what has ended is remembered for a minute.
fn grown(agent: &Agent, flows: impl Fn()) -> Vec<u64> {
    let mut grown = Vec::new();
    while grown.len() < 3 && grown.last().is_none_or(|bytes| *bytes >= GROWTH) {
        let before = agent.resident();
        flows();
        grown.push(agent.resident().saturating_sub(before));
    }
    grown
}

fn run(engine: &'static str, flows: usize) {
    let lab = Lab::new();
    // The agent's addresses for dialling are used up sooner than TIME_WAIT ends.
    let reuse = || std::fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1");
    lab.client(reuse).unwrap();
    lab.proxy(reuse).unwrap();
    let agent = Agent::start(&lab, &["--engine", engine, "--route", "a.test=10.91.2.2:8001"]);
    let listener = listen(&lab, backend(8001));
    listener.set_nonblocking(true).unwrap();
    let hello = Hello::new().sni(b"a.test").bytes();
    let held = || ["socket:", "anon_inode:", "pipe:"].map(|kind| agent.descriptors(kind));
    let [sockets, others, pipes] = held();

    let (first, rest) = (flows / 5, flows - flows / 5);
    batch(&lab, &listener, &hello, first);
    let grown = grown(&agent, || batch(&lab, &listener, &hello, rest));
    assert!(grown.last().unwrap() < &GROWTH, "{engine}, by {grown:?} bytes");
    let flows = first + rest * grown.len();
    let others_flows = (0..flows).filter(|_| agent.record()["engine"] != engine).count();
    // A peer that ends the flow with its first words leaves packets nothing to be translated for.
    let lawful = if engine == "packet" { flows / 10 } else { 0 };
    assert!(others_flows <= lawful, "{others_flows} flows were another engine's");
    // Splice keeps a pipe for each direction that was ever busy at once, those of other engines' flows too.
    let pool = if engine == "splice" || others_flows > 0 { 4 * AT_ONCE } else { 0 };
    let mut last = [0; 3];
    until("every descriptor to be closed", || {
        let now = held();
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
        assert_eq!(kernel::entries(agent.pid()), 0);
    }
}

#[test]
fn nothing_is_left_of_flows_that_ended_anyhow() {
    let flows = std::env::var("SNISPLIT_LEAKS").ok().and_then(|text| text.parse().ok());
    for engine in ENGINES {
        run(engine, flows.unwrap_or(2_000));
    }
}
