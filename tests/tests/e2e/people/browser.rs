//! A browser as small as it comes: cookies, redirects, and the first form of a page. It has no JavaScript, and the
//! pages of the providers need none.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use url::{Url, form_urlencoded};
use xtask::http;

use crate::house::Answer;

/// A person's browser at one provider.
#[derive(Default)]
pub struct Browser {
    cookies: BTreeMap<String, String>,
}

/// What it shows.
#[derive(Debug)]
pub struct Page {
    pub url: Url,
    pub body: String,
}

impl Browser {
    /// Opens a page, and goes wherever it is sent.
    pub fn open(&mut self, url: &str) -> Page {
        self.go("GET", url.parse().unwrap(), String::new())
    }

    /// Sends the first form of a page, with these fields beside those that it has.
    pub fn send(&mut self, page: &Page, fields: &[(&str, &str)]) -> Page {
        let form = &page.body[page.body.find("<form").unwrap_or_else(|| panic!("no form: {page:#?}"))..];
        let form = &form[..form.find("</form>").unwrap()];
        let action = page.url.join(&attribute(form, "action").unwrap()).unwrap();
        let hidden = form.split("<input").skip(1).filter(|input| input.contains("type=\"hidden\""));
        let hidden = hidden.filter_map(|input| Some((attribute(input, "name")?, attribute(input, "value")?)));
        let mut body = form_urlencoded::Serializer::new(String::new());
        hidden.for_each(|(name, value)| {
            body.append_pair(&name, &value);
        });
        fields.iter().for_each(|(name, value)| {
            body.append_pair(name, value);
        });
        self.go("POST", action, body.finish())
    }

    /// All its cookies.
    pub fn cookie_line(&self) -> String {
        let cookies: Vec<String> =
            self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        format!("Cookie: {}", cookies.join("; "))
    }

    /// As a page of this server's own origin asks it, with these headers besides.
    pub fn asks(&self, server: SocketAddr, method: &str, path: &str, more: &[String]) -> Answer {
        let own = ["Sec-Fetch-Site: same-origin".to_owned()];
        self.sends(server, method, path, &[&own, more].concat())
    }

    /// As some page asks.
    pub fn sends(&self, server: SocketAddr, method: &str, path: &str, headers: &[String]) -> Answer {
        let headers = [&[self.cookie_line()], headers].concat();
        Answer::of(http::request(server, method, path, &headers, "", Duration::from_secs(60)).unwrap())
    }

    fn go(&mut self, method: &str, mut url: Url, mut body: String) -> Page {
        let mut method = method.to_owned();
        for _ in 0..20 {
            let headers = [self.cookie_line(), "Content-Type: application/x-www-form-urlencoded".to_owned()];
            let server: SocketAddr = url.socket_addrs(|| None).unwrap()[0];
            let path = &url[url::Position::BeforePath..url::Position::AfterQuery];
            let reply =
                http::request(server, &method, path, &headers, &body, Duration::from_secs(60)).unwrap();
            for (name, value) in header_lines(&reply.head).filter(|(name, _)| name == "set-cookie") {
                let (name, value) = (name, value.split(';').next().unwrap().to_owned());
                assert_eq!(name, "set-cookie");
                let (cookie, value) = value.split_once('=').unwrap();
                self.cookies.insert(cookie.to_owned(), value.to_owned());
            }
            let next = header_lines(&reply.head).find(|(name, _)| name == "location");
            match next {
                Some((_, to)) if (300..400).contains(&reply.status) => url = url.join(&to).unwrap(),
                _ => {
                    assert!(reply.status < 400, "{} {url}: {}", reply.status, reply.body);
                    return Page { url, body: reply.body };
                }
            }
            (method, body) = ("GET".to_owned(), String::new());
        }
        panic!("sent around in circles: {url}");
    }
}

fn header_lines(head: &str) -> impl Iterator<Item = (String, String)> {
    let lines = head.lines().filter_map(|line| line.split_once(": "));
    lines.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
}

/// The value of an attribute of the first tag of this text.
fn attribute(text: &str, name: &str) -> Option<String> {
    let start = text.find(&format!("{name}=\""))? + name.len() + 2;
    let value = &text[start..];
    Some(value[..value.find('"')?].replace("&amp;", "&"))
}
