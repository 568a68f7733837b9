//! DNS-01 (RFC 8555 §8.4): TXT records, written by a dynamic update or by a program.
//!
//! A challenge is marked as ready when every authoritative name server has the record.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::str::FromStr as _;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use hickory_net::client::{Client, ClientHandle as _};
use hickory_net::runtime::TokioRuntimeProvider;
use hickory_net::tcp::TcpClientStream;
use hickory_net::xfer::DnsMultiplexer;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::TXT;
use hickory_proto::rr::rdata::tsig::TsigAlgorithm;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType, TSigner};
use hickory_resolver::TokioResolver;
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use crate::config::HmacAlgorithm;
use crate::config::acme::{Dns01Config, DnsProvider, TsigKey};
use crate::dns;

/// Longest time of a dynamic update, or of a run of the program.
const UPDATE_TIMEOUT: Duration = Duration::from_secs(60);
/// TTL of the TXT record, seconds.
const RECORD_TTL: u32 = 60;
/// Accepted difference between the clocks of both sides of TSIG, seconds (RFC 8945 §10).
const TSIG_FUDGE: u16 = 300;

/// A TXT record that was written and must be removed.
#[derive(Clone, Debug)]
pub(super) struct TxtRecord {
    name: String,
    value: String,
}

/// Change of a TXT record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RecordChange {
    Add,
    Remove,
}

impl RecordChange {
    /// First argument of the program (the convention of lego).
    const fn argument(self) -> &'static str {
        match self {
            Self::Add => "present",
            Self::Remove => "cleanup",
        }
    }
}

/// Writer of TXT records for DNS-01.
pub(super) struct Dns01Solver<'d> {
    config: &'d Dns01Config,
    nameservers: &'d [SocketAddr],
    resolver: TokioResolver,
}

impl<'d> Dns01Solver<'d> {
    /// `nameservers` resolve zones and their name servers; if empty, those of /etc/resolv.conf do.
    ///
    /// # Errors
    ///
    /// /etc/resolv.conf cannot be read.
    pub(super) fn new(config: &'d Dns01Config, nameservers: &'d [SocketAddr]) -> Result<Self> {
        Ok(Self { config, nameservers, resolver: dns::uncached_resolver(nameservers)? })
    }

    /// Adds the TXT record for a name: at `_acme-challenge.NAME`, or at the target of a CNAME there.
    ///
    /// # Errors
    ///
    /// The name server or the program rejects the record or takes too long.
    pub(super) async fn present(&self, name: &str, value: String) -> Result<TxtRecord> {
        let name = self.resolve_cname(&format!("_acme-challenge.{name}.")).await;
        let txt = TxtRecord { name, value };
        self.update_record(RecordChange::Add, &txt).await?;
        Ok(txt)
    }

    /// Removes the record, and no other of the same name.
    ///
    /// # Errors
    ///
    /// The name server or the program rejects the removal or takes too long.
    pub(super) async fn clean_up(&self, txt: &TxtRecord) -> Result<()> {
        self.update_record(RecordChange::Remove, txt).await
    }

    async fn resolve_cname(&self, name: &str) -> String {
        let Ok(found) = self.resolver.lookup(name, RecordType::CNAME).await else {
            return name.to_owned();
        };
        for record in found.answers() {
            if let RData::CNAME(target) = &record.data {
                return target.to_string();
            }
        }
        name.to_owned()
    }

    async fn update_record(&self, change: RecordChange, txt: &TxtRecord) -> Result<()> {
        let update = async {
            match &self.config.provider {
                DnsProvider::Exec(program) => run_program(program, change, txt).await,
                DnsProvider::Rfc2136 { server, zone, tsig } => {
                    let zone = match zone {
                        Some(zone) => Name::from_str(&format!("{}.", zone.trim_end_matches('.')))?,
                        None => find_zone(&self.resolver, &txt.name).await?,
                    };
                    send_update(*server, zone, tsig.as_ref(), change, txt).await
                }
            }
        };
        let verb = match change {
            RecordChange::Add => "add",
            RecordChange::Remove => "remove",
        };
        let result = timeout(UPDATE_TIMEOUT, update).await;
        result
            .context("took longer than a minute")
            .flatten()
            .with_context(|| format!("dns-01: cannot {verb} the TXT record of {}", txt.name))
    }

    /// Waits until every authoritative name server of the record's zone has it.
    ///
    /// # Errors
    ///
    /// A name server lacks the record after `propagation_timeout`, or the zone cannot be resolved.
    pub(super) async fn wait_propagated(&self, txt: &TxtRecord) -> Result<()> {
        let limit = self.config.propagation_timeout;
        let deadline = Instant::now() + limit;
        let mut delay = Duration::from_millis(200);
        loop {
            let missing = self.first_unpropagated(txt).await;
            match missing {
                Ok(None) => return Ok(()),
                Ok(Some(_)) | Err(_) if Instant::now() < deadline => {
                    debug!(name = txt.name, ?missing, "dns-01: record not propagated yet");
                }
                Ok(Some(server)) => {
                    bail!("dns-01: after {limit:?} {server} still lacks {}", txt.name);
                }
                Err(error) => return Err(error.context("dns-01: propagation")),
            }
            sleep(delay).await;
            delay = (delay * 2).min(Duration::from_secs(5));
        }
    }

    /// Returns the address of an authoritative name server that lacks the record.
    async fn first_unpropagated(&self, txt: &TxtRecord) -> Result<Option<IpAddr>> {
        let zone = find_zone(&self.resolver, &txt.name).await?;
        let servers = self.resolver.lookup(zone, RecordType::NS).await?;
        let mut queried = 0;
        for server in servers.answers() {
            let RData::NS(host) = &server.data else { continue };
            for ip in self.resolver.lookup_ip(host.to_string()).await?.iter() {
                queried += 1;
                if !has_record(SocketAddr::new(ip, self.authoritative_port()), txt).await {
                    return Ok(Some(ip));
                }
            }
        }
        ensure!(queried > 0, "the zone has no name server with an address");
        Ok(None)
    }

    /// Returns the port of the authoritative name servers: that of the configured name server, so that a
    /// test can run them on another port than 53.
    fn authoritative_port(&self) -> u16 {
        self.nameservers.first().map_or(53, SocketAddr::port)
    }
}

/// Returns whether this name server answers with the value.
async fn has_record(server: SocketAddr, txt: &TxtRecord) -> bool {
    let Ok(resolver) = dns::uncached_resolver(&[server]) else { return false };
    let Ok(found) = resolver.lookup(txt.name.as_str(), RecordType::TXT).await else {
        return false;
    };
    found.answers().iter().any(|record| {
        matches!(&record.data, RData::TXT(text) if text.txt_data.concat() == txt.value.as_bytes())
    })
}

/// Returns the zone of a name: its nearest ancestor with an SOA record.
async fn find_zone(resolver: &TokioResolver, name: &str) -> Result<Name> {
    let mut zone = Name::from_str(name)?;
    while !zone.is_root() {
        if let Ok(found) = resolver.lookup(zone.clone(), RecordType::SOA).await
            && found.answers().iter().any(|record| record.record_type() == RecordType::SOA)
        {
            return Ok(zone);
        }
        zone = zone.base_name();
    }
    bail!("no zone (SOA record) was found for {name}")
}

/// Runs `PROGRAM present|cleanup NAME VALUE`, as lego does; the name ends with a dot.
async fn run_program(program: &Path, change: RecordChange, txt: &TxtRecord) -> Result<()> {
    let mut command = Command::new(program);
    command.args([change.argument(), &txt.name, &txt.value]).kill_on_drop(true);
    let output = command.output().await.with_context(|| program.display().to_string())?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {}: {}", program.display(), output.status, stderr.trim());
    Ok(())
}

/// Sends a dynamic update (RFC 2136 §2.5.1, §2.5.4) over TCP.
async fn send_update(
    server: SocketAddr,
    zone: Name,
    tsig: Option<&TsigKey>,
    change: RecordChange,
    txt: &TxtRecord,
) -> Result<()> {
    let provider = TokioRuntimeProvider::default();
    let (stream, handle) = TcpClientStream::new(server, None, Some(UPDATE_TIMEOUT), provider);
    let mut exchange = DnsMultiplexer::new(stream.await?, handle);
    if let Some(tsig) = tsig {
        exchange = exchange.with_signer(tsig_signer(tsig)?);
    }
    let (mut client, background) = Client::<TokioRuntimeProvider>::from_sender(exchange);
    let running = tokio::spawn(background);
    let data = RData::TXT(TXT::new(vec![txt.value.clone()]));
    let mut record = Record::from_rdata(Name::from_str(&txt.name)?, RECORD_TTL, data);
    record.dns_class = DNSClass::IN;
    let answer = match change {
        RecordChange::Add => client.append(record, zone, false).await,
        RecordChange::Remove => client.delete_by_rdata(record, zone).await,
    };
    running.abort();
    let code = answer?.response_code;
    ensure!(code == ResponseCode::NoError, "{server} rejects the update: {code}");
    Ok(())
}

fn tsig_signer(tsig: &TsigKey) -> Result<TSigner> {
    let algorithm = match tsig.algorithm {
        HmacAlgorithm::HmacSha256 => TsigAlgorithm::HmacSha256,
        HmacAlgorithm::HmacSha384 => TsigAlgorithm::HmacSha384,
        HmacAlgorithm::HmacSha512 => TsigAlgorithm::HmacSha512,
    };
    Ok(TSigner::new(tsig.secret.clone(), algorithm, Name::from_str(&tsig.name)?, TSIG_FUDGE)?)
}
