//! The access log: one JSON object a line, written by a thread of its own.
//!
//! A slow disk never slows a connection: lines that do not fit into the queue are dropped and
//! counted (`snisplit_access_log_dropped_total`). SIGHUP opens the file anew, for logrotate.

use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use super::Metrics;
use super::record::Entry;

/// Lines waiting for the disk.
const QUEUE: usize = 8192;

#[derive(Debug)]
enum Message {
    Line(String),
    Reopen,
}

/// Writes what it is given until it is dropped; dropping waits for the last line.
#[derive(Debug)]
pub(crate) struct AccessLog {
    queue: Option<SyncSender<Message>>,
    writer: Option<JoinHandle<()>>,
}

impl AccessLog {
    /// Appends to a file; `-` is standard output.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let path = path.to_owned();
        let mut out = open(&path)?;
        let (queue, messages) = sync_channel(QUEUE);
        let writer = thread::Builder::new().name("access-log".into());
        let writer = writer.spawn(move || write(&messages, &path, &mut out))?;
        Ok(Self { queue: Some(queue), writer: Some(writer) })
    }

    /// Opens the file anew, behind the lines that wait for it.
    pub(crate) fn reopen(&self) {
        if let Some(queue) = &self.queue {
            let _full_of_lines = queue.try_send(Message::Reopen);
        }
    }

    pub(super) fn write(&self, entry: &Entry, metrics: &Metrics) {
        let sent = match (serde_json::to_string(entry), &self.queue) {
            (Ok(line), Some(queue)) => queue.try_send(Message::Line(line + "\n")).is_ok(),
            (Err(_), _) | (_, None) => false,
        };
        if !sent {
            metrics.access_log_dropped.inc();
        }
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(writer) = self.writer.take() {
            let _panicked = writer.join();
        }
    }
}

type Out = BufWriter<Box<dyn Write + Send>>;

fn open(path: &Path) -> io::Result<Out> {
    if path == Path::new("-") {
        return Ok(BufWriter::new(Box::new(io::stdout())));
    }
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    Ok(BufWriter::new(Box::new(file)))
}

/// Flushes whenever the queue runs empty, so that a line is on its way within a moment.
fn write(messages: &Receiver<Message>, path: &Path, out: &mut Out) {
    let mut failed = false;
    while let Ok(first) = messages.recv() {
        let mut burst = std::iter::once(first).chain(messages.try_iter());
        let written = burst.try_for_each(|message| match message {
            Message::Line(line) => out.write_all(line.as_bytes()),
            Message::Reopen => {
                out.flush()?;
                *out = open(path)?;
                Ok(())
            }
        });
        let result = written.and_then(|()| out.flush());
        if let Err(error) = &result
            && !failed
        {
            tracing::warn!(%error, "the access log cannot be written");
        }
        failed = result.is_err();
    }
}
