//! The access log: one line for each connection, written by a thread of its own.
//!
//! A slow disk does not slow connections: lines that do not fit into the queue are dropped and counted
//! (`snisplit_access_log_dropped_total`). SIGHUP opens the file again, for logrotate(8).

use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use serde::Serialize;
use serde_json::Value;

use super::metrics::Metrics;

/// Maximum number of lines that wait for the writer thread.
const MAX_QUEUED_LINES: usize = 8192;
/// Maximum length of the lines that wait for the writer thread, in bytes.
const MAX_QUEUED_LEN: usize = 4 << 20;

/// Format of a line (`access_log_format`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccessLogFormat {
    /// A JSON object.
    #[default]
    Json,
    /// `key=value` pairs without absent values. A value with a blank, a quote or `=` is a JSON string.
    Text,
}

/// Address of the back end that a connection was forwarded to.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum BackendEndpoint {
    Address(SocketAddr),
    /// `unix:` and the path of the socket.
    Unix(String),
}

/// Line of the access log. A value is absent if the connection ended before it was known.
#[derive(Debug, Serialize)]
pub(crate) struct AccessLogEntry {
    /// Seconds since 1970 at accept.
    pub(crate) timestamp: f64,
    pub(crate) client: SocketAddr,
    /// Proxy that sent the client's address in a PROXY header.
    pub(crate) proxy: Option<SocketAddr>,
    pub(crate) listener: SocketAddr,
    pub(crate) sni: Option<String>,
    pub(crate) alpn: Vec<String>,
    /// Number of offered protocols that `alpn` omits. The field is absent if there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) alpn_omitted: Option<usize>,
    pub(crate) client_hello_bytes: Option<usize>,
    pub(crate) client_hello_records: Option<usize>,
    /// Seconds from accept to a complete ClientHello.
    pub(crate) client_hello_seconds: Option<f64>,
    /// First name of the route.
    pub(crate) route: Option<String>,
    pub(crate) backend: Option<BackendEndpoint>,
    /// Seconds to connect to the back end, failed attempts included.
    pub(crate) connect_seconds: Option<f64>,
    pub(crate) engine: Option<&'static str>,
    /// Reason of the decision or of the rejection.
    pub(crate) reason: Option<&'static str>,
    /// Alert that the client was sent, by its name in the IANA registry.
    pub(crate) alert: Option<&'static str>,
    /// Bytes delivered to the back end.
    pub(crate) bytes_up: u64,
    /// Bytes delivered to the client.
    pub(crate) bytes_down: u64,
    /// Seconds from accept to the end.
    pub(crate) duration_seconds: f64,
    pub(crate) outcome: &'static str,
}

impl AccessLogFormat {
    fn format_line(self, entry: &AccessLogEntry) -> Result<String, serde_json::Error> {
        match self {
            Self::Json => serde_json::to_string(entry),
            Self::Text => serde_json::to_value(entry).map(|value| format_text(&value)),
        }
    }
}

fn format_text(entry: &Value) -> String {
    let pair = |(key, value): (&String, &Value)| {
        let is_absent = value.is_null() || value.as_array().is_some_and(Vec::is_empty);
        let plain = value.as_str().filter(|text| !text.contains([' ', '"', '=']));
        (!is_absent).then(|| match plain {
            Some(plain) => format!("{key}={plain}"),
            None => format!("{key}={value}"),
        })
    };
    let pairs: Vec<String> = entry.as_object().into_iter().flatten().filter_map(pair).collect();
    pairs.join(" ")
}

#[derive(Debug)]
enum Message {
    Line(String),
    Reopen,
}

/// Access log. Dropping it waits until all queued lines are written.
#[derive(Debug)]
pub(crate) struct AccessLog {
    format: AccessLogFormat,
    queue: Option<SyncSender<Message>>,
    /// Length of the lines in the queue, in bytes.
    queued_len: Arc<AtomicUsize>,
    writer: Option<JoinHandle<()>>,
}

impl AccessLog {
    /// Opens a file to append to, or standard output for `-`, and starts the writer thread.
    ///
    /// # Errors
    ///
    /// The file cannot be opened, or the thread cannot be started.
    pub(crate) fn open(path: &Path, format: AccessLogFormat) -> io::Result<Self> {
        let path = path.to_owned();
        let mut out = open(&path)?;
        let (queue, messages) = sync_channel(MAX_QUEUED_LINES);
        let queued_len = Arc::new(AtomicUsize::new(0));
        let writer = thread::Builder::new().name("access-log".into());
        let queued = Arc::clone(&queued_len);
        let writer = writer.spawn(move || write_loop(&messages, &queued, &path, &mut out))?;
        Ok(Self { format, queue: Some(queue), queued_len, writer: Some(writer) })
    }

    /// Makes the writer thread open the file again, after the lines that are queued already.
    pub(crate) fn reopen(&self) {
        if let Some(queue) = &self.queue {
            let _full_of_lines = queue.try_send(Message::Reopen);
        }
    }

    pub(super) fn write(&self, entry: &AccessLogEntry, metrics: &Metrics) {
        if !self.format.format_line(entry).is_ok_and(|line| self.enqueue(line + "\n")) {
            metrics.access_log_dropped.inc();
        }
    }

    /// Returns whether the line fits into the queue.
    fn enqueue(&self, line: String) -> bool {
        let Some(queue) = &self.queue else { return false };
        let len = line.len();
        // Two threads may exceed the maximum by a line each.
        if self.queued_len.load(Relaxed) + len > MAX_QUEUED_LEN {
            return false;
        }
        self.queued_len.fetch_add(len, Relaxed);
        let is_sent = queue.try_send(Message::Line(line)).is_ok();
        if !is_sent {
            self.queued_len.fetch_sub(len, Relaxed);
        }
        is_sent
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

type Output = BufWriter<Box<dyn Write + Send>>;

fn open(path: &Path) -> io::Result<Output> {
    if path == Path::new("-") {
        return Ok(BufWriter::new(Box::new(io::stdout())));
    }
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    Ok(BufWriter::new(Box::new(file)))
}

/// Writes queued lines until the queue is closed. Flushes whenever the queue is empty.
fn write_loop(
    messages: &Receiver<Message>,
    queued_len: &AtomicUsize,
    path: &Path,
    out: &mut Output,
) {
    let mut failed = false;
    while let Ok(first) = messages.recv() {
        let mut burst = std::iter::once(first).chain(messages.try_iter());
        let written = burst.try_for_each(|message| match message {
            Message::Line(line) => {
                queued_len.fetch_sub(line.len(), Relaxed);
                out.write_all(line.as_bytes())
            }
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
            tracing::warn!(%error, "cannot write the access log");
        }
        failed = result.is_err();
    }
}
