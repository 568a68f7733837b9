//! STARTTLS of PostgreSQL: psql requests TLS by an SSLRequest, and reaches the server of its server name.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;

use snisplit_tests::agent::{self, Agent};
use snisplit_tests::flow::ENGINES;
use snisplit_tests::lab::{Lab, backend};
use snisplit_tests::peer::{ServerProcess, create_identity};
use snisplit_tests::stream::{connect, read_all, read_exact, shutdown_write, write};
use tempfile::TempDir;

const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
const GSSENC_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 48];

/// Command of the newest installed PostgreSQL, run as `nobody`, because it refuses to run as root.
fn postgres_command(program: &str) -> Command {
    let versions = fs::read_dir("/usr/lib/postgresql").expect("an installed PostgreSQL");
    let newest = versions.map(|version| version.unwrap().path()).max().unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]);
    command.arg(newest.join("bin").join(program));
    command
}

fn chown_to_nobody(path: &Path) {
    chown(path, Some(65534), Some(65534)).unwrap();
}

/// Creates a database cluster that each server copies, because `initdb` takes long.
fn init_cluster(folder: &Path) -> PathBuf {
    chown_to_nobody(folder);
    let data = folder.join("data");
    let mut command = postgres_command("initdb");
    command.args(["--no-sync", "-A", "trust", "-U", "postgres", "-D"]).arg(&data);
    let done = command.current_dir("/").output().unwrap();
    assert!(done.status.success(), "{done:?}");
    fs::write(data.join("pg_hba.conf"), "hostssl all all 0.0.0.0/0 trust\n").unwrap();
    data
}

/// Starts a server with a certificate for this name, which is also its cluster name.
fn start_server(lab: &Lab, template: &Path, port: u16, name: &str) -> ServerProcess {
    let data = template.with_file_name(name);
    let copied = Command::new("cp").arg("-a").arg(template).arg(&data).status().unwrap();
    assert!(copied.success());
    let id = create_identity(lab, name);
    let (cert, key) = (data.join("server.crt"), data.join("server.key"));
    for (from, to) in [(&id.cert, &cert), (&id.key, &key)] {
        fs::copy(from, to).unwrap();
        chown_to_nobody(to);
    }
    let mut command = postgres_command("postgres");
    let address = backend(port);
    command.arg("-D").arg(&data).args(["-c", &format!("listen_addresses={}", address.ip())]);
    command.args(["-c", &format!("port={port}"), "-c", &format!("cluster_name={name}")]);
    command.args(["-c", "ssl=on", "-c", "unix_socket_directories="]);
    ServerProcess::start_backend(lab, address, &mut command)
}

fn psql(lab: &Lab, host: &str, query: &str) -> String {
    let to = format!(
        "host={host} hostaddr={} port={} user=postgres dbname=postgres sslmode=require \
         connect_timeout=20",
        agent::address().ip(),
        agent::PORT
    );
    let mut command = Command::new("psql");
    let done = lab.in_client(|| command.args([&to, "-Atc", query]).output()).unwrap();
    String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).trim().to_owned()
}

#[test]
fn psql_reaches_the_server_of_its_server_name() {
    let lab = Lab::new();
    let folder = TempDir::with_prefix("sp-pg-").unwrap();
    let template = init_cluster(folder.path());
    let _servers = [
        start_server(&lab, &template, 8001, "a.test"),
        start_server(&lab, &template, 8002, "b.test"),
    ];
    let routes = ["--route", "a.test=10.91.2.2:8001", "--route", "b.test=10.91.2.2:8002"];
    for engine in ENGINES {
        let more = ["--starttls", "postgres", "--engine", engine];
        let agent = Agent::start(&lab, &[&routes[..], &more].concat());
        for name in ["a.test", "b.test"] {
            assert_eq!(psql(&lab, name, "show cluster_name"), name);
            let record = agent.next_record();
            assert_eq!((&record["sni"], &record["engine"]), (&name.into(), &engine.into()));
        }
        let rows = psql(
            &lab,
            "a.test",
            "select sum(length(repeat(x::text, 1000))) from \
                         generate_series(1, 1000) x",
        );
        assert_eq!(rows, "2893000");
        agent.next_record();
        let output = psql(&lab, "c.test", "select 1");
        assert!(output.contains("unrecognized name"), "{output}");
        assert_eq!(agent.next_record()["alert"], "unrecognized_name");
    }
}

#[test]
fn requests_in_any_chunking_and_invalid_requests() {
    let lab = Lab::new();
    let agent = Agent::start(&lab, &["--starttls", "postgres", "--route", "a.test=10.91.2.2:8001"]);
    let client = connect(&lab, agent::address());
    write(&client, &GSSENC_REQUEST);
    assert_eq!(read_exact(&client, 1), b"N");
    SSL_REQUEST.chunks(3).for_each(|part| write(&client, part));
    assert_eq!(read_exact(&client, 1), b"S");
    write(&client, b"no TLS at all");
    shutdown_write(&client);
    assert_eq!(read_all(&client), [21, 3, 3, 0, 2, 2, 10]);
    assert_eq!(agent.next_record()["reason"], "not_tls");

    // A client without TLS is rejected.
    let plain = connect(&lab, agent::address());
    write(&plain, &[0, 0, 0, 8, 0, 3, 0, 0]);
    shutdown_write(&plain);
    assert_eq!(read_all(&plain), [21, 3, 3, 0, 2, 2, 10]);
    assert_eq!(agent.next_record()["reason"], "not_tls");
}
