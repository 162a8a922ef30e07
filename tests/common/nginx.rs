//! nginx, to show that others answer clients in the same way.

use std::{
    fs,
    net::TcpStream,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{Process, TIMEOUT, free_port, visitor::Port};

/// nginx with pages that can only be read, and none at `/nowhere`. It is killed when this value is dropped.
pub struct Nginx {
    _process: Process,
    pub port: u16,
    _directory: TempDir,
}

impl Port for Nginx {
    fn port(&self) -> u16 {
        self.port
    }
}

impl Nginx {
    pub fn start() -> Self {
        let (directory, port) = (TempDir::new().unwrap(), free_port());
        let config = format!(
            "daemon off; master_process off; pid pid; error_log error;
            events {{}}
            http {{
                access_log off; client_max_body_size 0;
                client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;
                server {{
                    listen 127.0.0.1:{port};
                    location /nowhere {{ return 404; }}
                    location / {{ if ($request_method !~ GET|HEAD) {{ return 405; }} return 200 page; }}
                }}
            }}"
        );
        fs::write(directory.path().join("nginx.conf"), config).unwrap();
        let mut nginx = Command::new("nginx");
        nginx.arg("-p").arg(directory.path()).args(["-c", "nginx.conf", "-e", "error"]).stderr(Stdio::null());
        let process = Process::spawn(&mut nginx);
        let begin = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(begin.elapsed() < TIMEOUT, "nginx does not listen");
            thread::sleep(Duration::from_millis(1));
        }
        Self { _process: process, port, _directory: directory }
    }
}
