//! At which addresses a listener can be reached.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Every URL under which `address` answers. Those of the network are what the kernel says.
pub(super) fn urls(address: SocketAddr) -> Vec<String> {
    let url = |ip: IpAddr| format!("http://{}/", SocketAddr::new(ip, address.port()));
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => {
            let own = std::fs::read_to_string("/proc/net/fib_trie").map(|text| local_v4(&text)).unwrap_or_default();
            let mut urls = vec![format!("http://localhost:{}/", address.port())];
            urls.extend(own.into_iter().map(|ip| url(ip.into())));
            urls
        }
        IpAddr::V6(ip) if ip.is_unspecified() => {
            let own = std::fs::read_to_string("/proc/net/if_inet6").map(|text| local_v6(&text)).unwrap_or_default();
            let mut urls = vec![url(Ipv6Addr::LOCALHOST.into())];
            urls.extend(own.into_iter().map(|ip| url(ip.into())));
            urls
        }
        ip => vec![url(ip)],
    }
}

/// The machine's own addresses, of which `/proc/net/fib_trie` says `host LOCAL` on the line after each; loopback left out.
fn local_v4(table: &str) -> Vec<Ipv4Addr> {
    let mut found: Vec<Ipv4Addr> = Vec::new();
    let mut last = None;
    for line in table.lines() {
        if let Some(address) = line.trim().strip_prefix("|-- ") {
            last = address.parse::<Ipv4Addr>().ok();
        } else if line.contains("/32 host LOCAL")
            && let Some(ip) = last.filter(|ip| !ip.is_loopback() && !found.contains(ip))
        {
            found.push(ip);
        }
    }
    found
}

/// `/proc/net/if_inet6`: 32 hexadecimal digits, index, prefix, scope (00 is global), flags, name.
fn local_v6(table: &str) -> Vec<Ipv6Addr> {
    table
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let bits = u128::from_str_radix(fields.next()?, 16).ok()?;
            (fields.nth(2)? == "00").then(|| Ipv6Addr::from_bits(bits))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables_are_read() {
        let table = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 127.0.0.1\n        /32 host LOCAL\n     |-- 192.168.1.0\n        \
                     /24 link UNICAST\n     |-- 192.168.1.5\n        /32 host LOCAL\nLocal:\n     |-- 192.168.1.5\n        \
                     /32 host LOCAL\n     |-- 192.168.1.255\n        /32 link BROADCAST\n";
        assert_eq!(local_v4(table), [Ipv4Addr::new(192, 168, 1, 5)]);
        let table = "00000000000000000000000000000001 01 80 10 80       lo\n\
                     20010db8000000000000000000000005 02 40 00 80     eth0\n\
                     fe800000000000000000000000000005 02 40 20 80     eth0\n";
        assert_eq!(local_v6(table), ["2001:db8::5".parse::<Ipv6Addr>().unwrap()]);
    }

    #[test]
    fn one_address_is_one_url() {
        assert_eq!(urls("127.0.0.1:8080".parse().unwrap()), ["http://127.0.0.1:8080/"]);
        assert_eq!(urls("[::1]:8080".parse().unwrap()), ["http://[::1]:8080/"]);
        assert!(urls("0.0.0.0:8080".parse().unwrap()).contains(&String::from("http://localhost:8080/")));
    }
}
