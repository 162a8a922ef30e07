//! Redis with TLS, and certificates created by the test.

use std::process::{Command, Stdio};

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
        let name = format!("subjectAltName=DNS:{host}");
        let (ca, key) = (self.file(), self.path("ca.key"));
        self.certify(host, &["-CA", &ca, "-CAkey", &key, "-addext", "basicConstraints=CA:FALSE", "-addext", &name]);
        let certificate = self.path(&format!("{host}.crt"));
        let key = self.path(&format!("{host}.key"));
        let mut redis = Redis::start_with_port(|port| {
            let port = port.to_string();
            let options = [
                ["--port", "0"],
                ["--tls-port", &port],
                ["--tls-cert-file", &certificate],
                ["--tls-key-file", &key],
                ["--tls-ca-cert-file", &ca],
                ["--tls-auth-clients", "no"],
                ["--requirepass", password],
            ];
            options.concat().into_iter().map(str::to_owned).collect()
        });
        let options = ["--tls", "--cacert", &ca, "--no-auth-warning", "-a", password];
        redis.cli_options = options.map(str::to_owned).to_vec();
        redis
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
