//! HTTP requests as small as they come: no TLS, one connection each. A guest's page can be fetched from inside its
//! network's namespace, because addresses may repeat on a node.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

/// An answer. It is the same as another if status and body are: headers have a date.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Its status.
    pub status: u16,
    /// Its headers, as they came.
    pub head: String,
    /// Its body.
    pub body: String,
}

impl PartialEq for Reply {
    fn eq(&self, other: &Reply) -> bool {
        (self.status, &self.body) == (other.status, &other.body)
    }
}

/// One request. `headers` are whole lines.
pub fn request(
    server: SocketAddr,
    method: &str,
    path: &str,
    headers: &[String],
    body: &str,
    patience: Duration,
) -> Result<Reply> {
    let mut stream = TcpStream::connect_timeout(&server, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    let mut text = format!("{method} {path} HTTP/1.0\r\nHost: {server}\r\nConnection: close\r\n");
    for header in headers {
        text.push_str(&format!("{header}\r\n"));
    }
    text.push_str(&format!("Content-Length: {}\r\n\r\n{body}", body.len()));
    stream.write_all(text.as_bytes())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    parse(&bytes)
}

fn parse(bytes: &[u8]) -> Result<Reply> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
    let end = end.context("the answer has no end of its head")?;
    let (head, body) = (String::from_utf8_lossy(&bytes[..end]), &bytes[end + 4..]);
    let status = head.split_whitespace().nth(1).and_then(|word| word.parse().ok());
    let status = status.with_context(|| format!("not an HTTP answer: {head}"))?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    // A server that ends in the middle of an answer has not answered.
    if length.is_some_and(|length| body.len() < length) {
        bail!("the answer is cut off");
    }
    let body = String::from_utf8_lossy(body);
    let (head, body) = (head.into_owned(), body.into_owned());
    Ok(Reply { status, head, body })
}

/// GET of a page; an error unless the answer is 200.
pub fn page(server: SocketAddr, path: &str, patience: Duration) -> Result<String> {
    let reply = request(server, "GET", path, &[], "", patience)?;
    if reply.status != 200 {
        bail!("http://{server}{path} answers {}", reply.status);
    }
    Ok(reply.body)
}

/// GET of a page from inside a network namespace (needs root).
pub fn page_in(namespace: &str, server: SocketAddr, path: &str, patience: Duration) -> Result<String> {
    let file = Path::new("/run/netns").join(namespace);
    let file = File::open(&file).with_context(|| format!("{} cannot be entered", file.display()))?;
    // A namespace belongs to a thread: this one ends with the request.
    std::thread::scope(|scope| {
        let fetched = scope.spawn(|| {
            setns(&file, CloneFlags::CLONE_NEWNET)
                .with_context(|| format!("the namespace {namespace} cannot be entered"))?;
            page(server, path, patience)
        });
        fetched.join().unwrap_or_else(|_| bail!("the thread in {namespace} panicked"))
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn half_an_answer_is_none() {
        let whole = b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello";
        assert_eq!(parse(whole).unwrap().body, "hello");
        for end in 0..whole.len() {
            assert!(parse(&whole[..end]).is_err(), "{end}");
        }
    }

    #[test]
    fn a_page_is_fetched() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let served = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = [0; 1024];
            let length = stream.read(&mut asked).unwrap();
            stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nhello").unwrap();
            String::from_utf8_lossy(&asked[..length]).into_owned()
        });
        assert_eq!(page(address, "/x", Duration::from_secs(5)).unwrap(), "hello");
        assert!(served.join().unwrap().starts_with("GET /x HTTP/1.0\r\n"));
    }
}
