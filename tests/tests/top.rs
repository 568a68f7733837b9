//! `snisplit top`: which flow moves how much now.

//@ engines: named

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use snisplit_tests::agent::binary_path;
use snisplit_tests::flow::Flow;
use snisplit_tests::stream::{read_exact, write};

/// What it shows in one look.
fn run_top_once(instance: &str) -> Vec<Vec<String>> {
    let words = ["top", "--instance", instance, "--interval", "300ms", "--count", "1"];
    let done = Command::new(binary_path()).args(words).output().unwrap();
    assert!(done.status.success(), "{done:?}");
    let text = String::from_utf8(done.stdout).unwrap();
    let words = |line: &str| line.split_whitespace().map(String::from).collect();
    text.lines().map(words).filter(|line: &Vec<String>| !line.is_empty()).collect()
}

#[test]
fn the_busiest_flow_comes_first() {
    for engine in ["sockmap", "packet"] {
        let instance = format!("sp-top-{engine}");
        let flow = Flow::open_with(engine, &["--instance", &instance]);
        let (busy, server) = flow.connect_another();
        let chunk = [7; 64 * 1024];
        let is_over = AtomicBool::new(false);
        let shown = thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    write(&busy, &chunk);
                    read_exact(&server, chunk.len());
                }
            });
            let shown = run_top_once(&instance);
            is_over.store(true, Ordering::Relaxed);
            shown
        });
        let [sums, titles, first, second] = &shown[..] else { panic!("{shown:?}") };
        assert_eq!(sums[..2], ["2", "flows,"], "{shown:?}");
        assert_eq!(titles.last().unwrap(), "flow");
        let number = |row: &[String], at: usize| row[at].parse::<f64>().unwrap();
        assert!(number(first, 0) > 1.0 && number(first, 2) > 0.1, "{first:?}");
        assert_eq!(first[5..7], [engine.to_owned(), busy.local_addr().unwrap().to_string()]);
        assert_eq!(first[7..], ["->", "10.91.2.2:8001", "a.test"]);
        assert_eq!(second[..2], ["0.0", "0.0"], "{second:?}");
        assert_eq!(second[6], flow.client.local_addr().unwrap().to_string());
    }
}

#[test]
fn missing_pins_are_reported() {
    let done =
        Command::new(binary_path()).args(["top", "--instance", "sp-nobody"]).output().unwrap();
    let output = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(!done.status.success() && output.contains("nothing is pinned there"), "{output}");
}
