//! Redis with TLS, and certificates created by the test.

use std::{
    net::IpAddr,
    process::{Command, Stdio},
};

use tempfile::TempDir;

use super::Redis;

/// A certificate authority that is trusted only where [`file`](Self::file) is configured.
pub struct Authority {
    directory: TempDir,
}

impl Authority {
    pub fn new() -> Self {
        let authority = Self { directory: TempDir::new().unwrap() };
        authority.certify("ca", &["-addext", "basicConstraints=critical,CA:TRUE"]);
        authority
    }

    /// The value of `SSL_CERT_FILE` that makes the service trust this authority.
    pub fn file(&self) -> String {
        self.path("ca.crt")
    }

    /// Starts a Redis that accepts only TLS, with a certificate for this host name and this password.
    pub fn redis(&self, host: &str, password: &str) -> Redis {
        let mut redis = Redis::start_with_port(|port| {
            let mut options = self.server_options(port, host);
            options.extend(["--requirepass", password].map(str::to_owned));
            options
        });
        redis.cli_options = self.cli_options();
        redis.cli_options.extend(["--no-auth-warning", "-a", password].map(str::to_owned));
        redis
    }

    /// The options of a server that accepts only TLS, also from other servers, with a certificate for this host name or
    /// address.
    pub fn server_options(&self, port: u16, host: &str) -> Vec<String> {
        let kind = if host.parse::<IpAddr>().is_ok() { "IP" } else { "DNS" };
        let name = format!("subjectAltName={kind}:{host}");
        let (ca, key) = (self.file(), self.path("ca.key"));
        self.certify(host, &["-CA", &ca, "-CAkey", &key, "-addext", "basicConstraints=CA:FALSE", "-addext", &name]);
        let options = [
            ["--port", "0"],
            ["--tls-port", &port.to_string()],
            ["--tls-cert-file", &self.path(&format!("{host}.crt"))],
            ["--tls-key-file", &self.path(&format!("{host}.key"))],
            ["--tls-ca-cert-file", &ca],
            ["--tls-auth-clients", "no"],
            ["--tls-replication", "yes"],
        ];
        options.concat().into_iter().map(str::to_owned).collect()
    }

    /// The options with which `redis-cli` uses TLS.
    pub fn cli_options(&self) -> Vec<String> {
        ["--tls", "--cacert", &self.file()].map(str::to_owned).to_vec()
    }

    /// Creates `name.key` and `name.crt`. Elliptic-curve keys, because they are generated quickly.
    fn certify(&self, name: &str, options: &[&str]) {
        let mut openssl = Command::new("openssl");
        openssl
            .args(["req", "-x509", "-days", "1", "-nodes", "-config", "/dev/null"])
            .args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"])
            .args(["-subj", &format!("/CN={} {name}", self.name())])
            .args(["-keyout", &self.path(&format!("{name}.key"))])
            .args(["-out", &self.path(&format!("{name}.crt"))])
            .args(options)
            .stdin(Stdio::null());
        let output = openssl.output().expect("openssl, see tests/run");
        assert!(output.status.success(), "{output:?}");
    }

    /// A name that no other authority has: the directory's.
    fn name(&self) -> &str {
        self.directory.path().file_name().unwrap().to_str().unwrap()
    }

    fn path(&self, name: &str) -> String {
        let path = self.directory.path().join(name);
        path.to_str().unwrap().to_owned()
    }
}
