//! DNS-01 records, RFC 8555 §8.4: written by a dynamic update or a program, and seen on every
//! authoritative name server before the CA is asked to look.

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

use crate::config::acme::{Algorithm, Dns, Provider, Tsig};
use crate::dns;

/// How long one exchange with a name server, or a run of the program, may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Of the record; it lives for minutes.
const TTL: u32 = 60;
/// The difference between two clocks that TSIG bears, seconds (RFC 8945 §10).
const FUDGE: u16 = 300;

/// A record, once it is written; it must be cleaned up.
#[derive(Clone, Debug)]
pub(super) struct Written {
    name: String,
    value: String,
}

/// Writes records and waits for them.
pub(super) struct Records<'d> {
    dns: &'d Dns,
    servers: &'d [SocketAddr],
    resolver: TokioResolver,
}

impl<'d> Records<'d> {
    /// `servers` are asked for zones and their name servers; those of the system if there is none.
    pub(super) fn new(dns: &'d Dns, servers: &'d [SocketAddr]) -> Result<Self> {
        Ok(Self { dns, servers, resolver: dns::uncached_resolver(servers)? })
    }

    /// Adds the record for a name, where its `_acme-challenge` leads to by CNAME.
    pub(super) async fn present(&self, name: &str, value: String) -> Result<Written> {
        let name = self.target(&format!("_acme-challenge.{name}.")).await;
        let written = Written { name, value };
        self.change("present", &written).await?;
        Ok(written)
    }

    /// Removes the record, and no other of the same name.
    pub(super) async fn clean_up(&self, written: &Written) -> Result<()> {
        self.change("cleanup", written).await
    }

    async fn target(&self, name: &str) -> String {
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

    async fn change(&self, verb: &str, written: &Written) -> Result<()> {
        let changed = async {
            match &self.dns.provider {
                Provider::Exec(program) => run(program, verb, written).await,
                Provider::Rfc2136 { server, zone, tsig } => {
                    let zone = match zone {
                        Some(zone) => Name::from_str(&format!("{}.", zone.trim_end_matches('.')))?,
                        None => zone_of(&self.resolver, &written.name).await?,
                    };
                    update(*server, zone, tsig.as_ref(), verb, written).await
                }
            }
        };
        let changed = timeout(PATIENCE, changed).await;
        changed
            .context("took longer than a minute")
            .flatten()
            .with_context(|| format!("dns-01: cannot {verb} the TXT record of {}", written.name))
    }

    /// Waits until every authoritative name server of the record's zone has it.
    pub(super) async fn wait(&self, written: &Written) -> Result<()> {
        let limit = self.dns.propagation_timeout;
        let deadline = Instant::now() + limit;
        let mut pause = Duration::from_millis(200);
        loop {
            let missing = self.first_without(written).await;
            match missing {
                Ok(None) => return Ok(()),
                Ok(Some(_)) | Err(_) if Instant::now() < deadline => {
                    debug!(name = written.name, ?missing, "dns-01: not everywhere yet");
                }
                Ok(Some(server)) => {
                    bail!("dns-01: after {limit:?} {server} still lacks {}", written.name);
                }
                Err(error) => return Err(error.context("dns-01: propagation")),
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }

    async fn first_without(&self, written: &Written) -> Result<Option<IpAddr>> {
        let zone = zone_of(&self.resolver, &written.name).await?;
        let servers = self.resolver.lookup(zone, RecordType::NS).await?;
        let mut asked = 0;
        for server in servers.answers() {
            let RData::NS(host) = &server.data else { continue };
            for ip in self.resolver.lookup_ip(host.to_string()).await?.iter() {
                asked += 1;
                if !has(SocketAddr::new(ip, self.port()), written).await {
                    return Ok(Some(ip));
                }
            }
        }
        ensure!(asked > 0, "the zone has no name server with an address");
        Ok(None)
    }

    /// Of the authoritative servers; a lab's may be elsewhere than on 53.
    fn port(&self) -> u16 {
        self.servers.first().map_or(53, SocketAddr::port)
    }
}

/// Whether this very server answers with the value.
async fn has(server: SocketAddr, written: &Written) -> bool {
    let Ok(resolver) = dns::uncached_resolver(&[server]) else { return false };
    let Ok(found) = resolver.lookup(written.name.as_str(), RecordType::TXT).await else {
        return false;
    };
    found.answers().iter().any(|record| {
        matches!(&record.data, RData::TXT(text) if text.txt_data.concat() == written.value.as_bytes())
    })
}

/// The zone that a name is in: the nearest ancestor with an SOA record.
async fn zone_of(resolver: &TokioResolver, name: &str) -> Result<Name> {
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

/// lego's convention: PROGRAM present|cleanup NAME VALUE; the name ends in a dot.
async fn run(program: &Path, verb: &str, written: &Written) -> Result<()> {
    let mut command = Command::new(program);
    command.args([verb, &written.name, &written.value]).kill_on_drop(true);
    let done = command.output().await.with_context(|| program.display().to_string())?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "{}: {}: {}", program.display(), done.status, said.trim());
    Ok(())
}

/// RFC 2136 §2.5.1 and §2.5.4, over TCP.
async fn update(
    server: SocketAddr,
    zone: Name,
    tsig: Option<&Tsig>,
    verb: &str,
    written: &Written,
) -> Result<()> {
    let provider = TokioRuntimeProvider::default();
    let (stream, handle) = TcpClientStream::new(server, None, Some(PATIENCE), provider);
    let mut exchange = DnsMultiplexer::new(stream.await?, handle);
    if let Some(tsig) = tsig {
        exchange = exchange.with_signer(signer(tsig)?);
    }
    let (mut client, background) = Client::<TokioRuntimeProvider>::from_sender(exchange);
    let running = tokio::spawn(background);
    let data = RData::TXT(TXT::new(vec![written.value.clone()]));
    let mut record = Record::from_rdata(Name::from_str(&written.name)?, TTL, data);
    record.dns_class = DNSClass::IN;
    let answer = match verb {
        "present" => client.append(record, zone, false).await,
        _ => client.delete_by_rdata(record, zone).await,
    };
    running.abort();
    let code = answer?.response_code;
    ensure!(code == ResponseCode::NoError, "{server} refuses the update: {code}");
    Ok(())
}

fn signer(tsig: &Tsig) -> Result<TSigner> {
    let algorithm = match tsig.algorithm {
        Algorithm::HmacSha256 => TsigAlgorithm::HmacSha256,
        Algorithm::HmacSha384 => TsigAlgorithm::HmacSha384,
        Algorithm::HmacSha512 => TsigAlgorithm::HmacSha512,
    };
    Ok(TSigner::new(tsig.secret.clone(), algorithm, Name::from_str(&tsig.name)?, FUDGE)?)
}
