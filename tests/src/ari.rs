//! nginx in front of Pebble, which adds renewal information (ARI, RFC 9773) to a CA without it.

use std::path::PathBuf;
use std::process::Command;

use crate::lab::Lab;
use crate::pebble::Pebble;
use crate::peer::{ServerProcess, write_file};

/// The proxy in front of Pebble. Its renewal window is in the past.
#[derive(Debug)]
pub struct AriProxy {
    _server: ServerProcess,
    directory: String,
    log: PathBuf,
}

impl AriProxy {
    /// Starts the proxy in front of a running Pebble.
    pub fn start(lab: &Lab, pebble: &Pebble) -> Self {
        let folder = lab.dir().display();
        let config = format!(
            "daemon off; master_process off; pid {folder}/ari.pid; error_log stderr;
             events {{}}
             http {{
               access_log {folder}/ari.log; client_body_temp_path {folder}/ari;
               proxy_temp_path {folder}/ari; fastcgi_temp_path {folder}/ari;
               uwsgi_temp_path {folder}/ari; scgi_temp_path {folder}/ari;
               log_format uri '$uri';
               server {{
                 listen 10.91.1.2:14443 ssl;
                 ssl_certificate {folder}/https.pem; ssl_certificate_key {folder}/https.key;
                 location = /dir {{
                   access_log off;
                   proxy_pass {pebble_dir}; proxy_set_header Host 10.91.1.2:14000;
                   sub_filter_types application/json;
                   sub_filter '\"newOrder\"' '\"renewalInfo\": \"https://10.91.1.2:14443/ari\", \"newOrder\"';
                 }}
                 location /ari/ {{
                   access_log {folder}/ari.log uri;
                   default_type application/json; add_header Retry-After 21600;
                   return 200 '{{\"suggestedWindow\": {{\"start\": \"2026-01-01T00:00:00Z\", \"end\": \"2026-01-02T00:00:00Z\"}}}}';
                 }}
               }}
             }}",
            pebble_dir = pebble.directory(),
        );
        let file = write_file(lab, "ari.conf", &config);
        let mut nginx = Command::new("nginx");
        nginx.arg("-c").arg(file).args(["-p", "."]);
        let address = "10.91.1.2:14443".parse().unwrap();
        let server = ServerProcess::start_at_client(lab, address, &mut nginx);
        let log = lab.dir().join("ari.log");
        Self { _server: server, directory: "https://10.91.1.2:14443/dir".into(), log }
    }

    /// URL of the ACME directory.
    pub fn directory(&self) -> &str {
        &self.directory
    }

    /// Path of the first request for renewal information.
    pub fn first_renewal_info_path(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap();
        log.lines().find(|line| line.starts_with("/ari/")).unwrap().to_owned()
    }
}
