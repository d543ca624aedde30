//! IP addresses as text, for the headers and the log line of every request.

use std::io::Write as _;
use std::net::IpAddr;

/// An address as text, on the stack.
pub struct Address {
    text: [u8; Self::ROOM],
    length: usize,
}

impl Address {
    /// The longest there is takes 45 bytes.
    const ROOM: usize = 48;

    /// As `Display` writes it.
    pub fn of(address: IpAddr) -> Self {
        let mut text = [0; Self::ROOM];
        let mut rest = &mut text[..];
        let written = match address {
            // Most of them, and without the machinery of formatting.
            IpAddr::V4(address) => address.octets().iter().enumerate().try_for_each(|(place, octet)| {
                let dot: &[u8] = if place == 0 { b"" } else { b"." };
                rest.write_all(dot).and_then(|()| rest.write_all(itoa::Buffer::new().format(*octet).as_bytes()))
            }),
            IpAddr::V6(address) => write!(rest, "{address}"),
        };
        let left = if written.is_ok() { rest.len() } else { Self::ROOM };
        Self { text, length: Self::ROOM - left }
    }

    /// ASCII.
    pub fn text(&self) -> &[u8] {
        self.text.get(..self.length).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_written_as_the_standard_library_writes_it() {
        for address in [
            "0.0.0.0",
            "127.0.0.1",
            "192.168.10.203",
            "255.255.255.255",
            "::",
            "::1",
            "2001:db8::a:0:0:1",
            "::ffff:192.0.2.128",
            "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
        ] {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(Address::of(address).text(), address.to_string().as_bytes());
        }
    }
}
