//! The signature of a request or a call: its route or kind, and the identifiers in it.
//! All are hashes: the text itself is not stored.

use crate::bytes::fnv1a;

/// Identifiers of one request at most.
const TOKENS_MOST: usize = 16;
/// Bytes of a path, of a query and of all headers together that are looked at, parts of
/// each, and bytes of one part: no request costs much more than a common one, whatever
/// is in it.
const LOOKED_AT: usize = 1024;
const LOOKED_AT_PARTS: usize = 48;
const LOOKED_AT_PART: usize = 512;
/// Bytes of a method and of an authority.
const METHOD: usize = 32;
const AUTHORITY: usize = 256;
/// Parts of a path that belong to the kind, at most.
const PARTS: usize = 8;
/// A shorter text identifies nothing.
const SHORTEST: usize = 3;

/// An identifier in a request: a hash, and how unlikely it is by its form that
/// two requests have it by chance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(u32);

impl Token {
    /// Of a text, hashed with a seed that is secret. `None` if it is shorter than 3 bytes.
    pub fn of(seed: u64, text: &[u8]) -> Option<Self> {
        if text.len() < SHORTEST {
            return None;
        }
        let text = first(text, LOOKED_AT_PART);
        let digits = text.iter().filter(|byte| byte.is_ascii_digit()).count();
        let rare = match text.len() {
            16.. if digits >= 3 => 3,
            8.. if digits >= 2 => 2,
            4.. if digits >= 2 => 1,
            _ => 0,
        };
        Some(Self((hash(seed ^ TOKENS, [text]) & !3) | rare))
    }

    /// From its encoding.
    pub fn from_u32(number: u32) -> Self {
        Self(number)
    }

    /// Its encoding.
    pub fn to_u32(self) -> u32 {
        self.0
    }

    /// How rare it looks, from 0 to 3.
    pub fn rarity(self) -> usize {
        (self.0 & 3) as usize
    }
}

const TOKENS: u64 = 0x746f_6b65_6e73;

/// FNV-1a, folded; a byte that cannot be in a part keeps parts apart.
fn hash<'a>(seed: u64, parts: impl IntoIterator<Item = &'a [u8]>) -> u32 {
    let ended = parts.into_iter().flat_map(|part| part.iter().chain(&[0]));
    let hash = fnv1a(seed, ended);
    (hash ^ (hash >> 32)) as u32
}

/// No more than its first bytes.
fn first(text: &[u8], most: usize) -> &[u8] {
    text.get(..most).unwrap_or(text)
}

/// The parts of a path before its query.
fn parts(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let path = first(path, LOOKED_AT);
    let end = path.iter().position(|byte| matches!(byte, b'?' | b'#'));
    let path = end.and_then(|end| path.get(..end)).unwrap_or(path);
    path.split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty())
}

/// A version of an interface: `v1`, `v2beta1`, `v1p2alpha`.
fn is_version(text: &[u8]) -> bool {
    let [b'v' | b'V', b'0'..=b'9', ..] = text else {
        return false;
    };
    let mut rest = text.get(1..).unwrap_or_default();
    for word in ["", "p", "alpha", "beta"] {
        if let Some(number) = rest.strip_prefix(word.as_bytes()) {
            let digits = number
                .iter()
                .take(2)
                .take_while(|byte| byte.is_ascii_digit());
            rest = number.get(digits.count()..).unwrap_or_default();
        }
    }
    rest.is_empty()
}

/// A part that stands for one of many: a number, a UUID, a hash, an address.
fn is_identifier(part: &[u8]) -> bool {
    let is_letter = |byte: &u8| byte.is_ascii_alphabetic() || matches!(byte, b'-' | b'_');
    // gRPC: package.v1.Service
    let mut names = part.split(|byte| *byte == b'.');
    part.len() > 48 || !names.all(|name| name.iter().all(is_letter) || is_version(name))
}

/// The kind of a call: a hash of the method, the host, and the path without its
/// identifiers; and one of a class of kinds, for when there are too many: of the method, the
/// host, and the number of parts of the path.
pub fn kind(method: &[u8], authority: &[u8], path: &[u8]) -> [u32; 2] {
    let method = first(method, METHOD);
    let host = first(authority, AUTHORITY).to_ascii_lowercase();
    let depth = [parts(path).count().min(PARTS) as u8];
    [
        fine(method, &host, path),
        hash(1, [method, host.as_slice(), depth.as_slice()]),
    ]
}

fn fine(method: &[u8], host: &[u8], path: &[u8]) -> u32 {
    let template = parts(path)
        .take(PARTS)
        .map(|part| if is_identifier(part) { b"*" } else { part });
    hash(0, [method, host].into_iter().chain(template))
}

/// A hash of the host of a call.
pub fn host(authority: &[u8]) -> u32 {
    hash(2, [first(authority, AUTHORITY)])
}

/// The route of a request: a hash of the method, and the path without its identifiers.
pub fn route(method: &[u8], path: &[u8]) -> u32 {
    fine(first(method, METHOD), b"", path)
}

/// The rarest identifiers of a request, the first ones first.
#[derive(Default)]
struct Tokens(Vec<Token>);

impl Tokens {
    fn add(&mut self, token: Token) {
        let Self(tokens) = self;
        if tokens.contains(&token) {
            return;
        }
        if tokens.len() < TOKENS_MOST {
            tokens.push(token);
            return;
        }
        // The last of those that look least rare.
        let least = tokens.iter().enumerate().rev();
        let least = least.min_by_key(|(_, token)| token.rarity());
        let least = least.filter(|(_, least)| least.rarity() < token.rarity());
        if let Some(at) = least.map(|(at, _)| at) {
            tokens.remove(at);
            tokens.push(token);
        }
    }
}

/// The identifiers of a request: the parts of its path, the values of its query,
/// and values of headers, of which a cookie has several. Of a long text, those near the
/// beginning. 16 at most.
pub fn tokens<'a>(
    seed: u64,
    path: &[u8],
    headers: impl IntoIterator<Item = &'a [u8]>,
) -> Vec<Token> {
    let mut tokens = Tokens::default();
    let mut add = |text: &[u8]| {
        if let Some(token) = Token::of(seed, text) {
            tokens.add(token);
        }
    };
    let value = |pair: &[u8]| {
        let equals = pair.iter().position(|byte| *byte == b'=');
        equals.map_or(0, |equals| equals + 1)
    };
    parts(path).take(LOOKED_AT_PARTS).for_each(&mut add);
    let query = first(path, 4 * LOOKED_AT)
        .iter()
        .position(|byte| *byte == b'?');
    let query = query.and_then(|at| path.get(at + 1..)).unwrap_or_default();
    let pairs = first(query, LOOKED_AT).split(|byte| *byte == b'&');
    for pair in pairs.take(LOOKED_AT_PARTS) {
        add(pair.get(value(pair)..).unwrap_or_default());
    }
    let (mut bytes, mut left) = (LOOKED_AT, LOOKED_AT_PARTS);
    for header in headers {
        let header = first(header, bytes);
        bytes -= header.len();
        for item in header.split(|byte| *byte == b';').take(left) {
            left -= 1;
            let item = item.trim_ascii();
            add(item.get(value(item)..).unwrap_or_default());
        }
        if bytes == 0 || left == 0 {
            break;
        }
    }
    tokens.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn same(a: &str, b: &str) -> bool {
        let of = |path: &str| kind(b"GET", b"ratings:9080", path.as_bytes())[0];
        of(a) == of(b)
    }

    #[test]
    fn identifiers_are_left_out_of_a_kind() {
        assert!(same("/ratings/0", "/ratings/17?full=1"));
        assert!(same(
            "/users/0f7a1c2e-1b2d-4c3e-9d4f-5a6b7c8d9e0f/orders",
            "/users/8e8a1c2e-1b2d-4c3e-9d4f-5a6b7c8d9e0f/orders/"
        ));
        assert!(!same("/ratings/0", "/reviews/0"));
        assert!(!same("/v1/ratings", "/v2/ratings"));
        assert!(!same("/shop.v1.Cart/Get", "/shop.v1.Cart/Put"));
        for version in ["v1", "v12", "V2", "v2beta1", "v1alpha", "v1p4beta12"] {
            let [cart, orders] =
                ["Cart", "Orders"].map(|name| format!("/shop.{version}.{name}/Get"));
            assert!(!same(&cart, &orders), "{version}");
            assert!(!same(&format!("/{version}/items"), "/7/items"), "{version}");
        }
        for id in ["v123", "v7f3a9c2e", "vp1", "v1beta123", "1v", "v1betap2"] {
            assert!(same(&format!("/shop.{id}/items"), "/7/items"), "{id}");
        }
        assert!(!same("/a/b", "/ab"));
        assert_ne!(kind(b"GET", b"a", b"/"), kind(b"PUT", b"a", b"/"));
        assert_eq!(kind(b"GET", b"A", b"/"), kind(b"GET", b"a", b"/"));
    }

    #[test]
    fn identifiers_are_found_wherever_they_are() {
        let id = Token::of(7, b"9b1deb4d").unwrap();
        let cookies: [&[u8]; 1] = [b"theme=dark; session=9b1deb4d"];
        for found in [
            tokens(7, b"/users/9b1deb4d", []),
            tokens(7, b"/x?a=1&id=9b1deb4d", []),
            tokens(7, b"/", cookies),
        ] {
            assert!(found.contains(&id), "{found:?}");
        }
        assert!(!tokens(8, b"/users/9b1deb4d", []).contains(&id));
        assert!(!tokens(7, b"/users/9b1deb4e", []).contains(&id));
    }

    #[test]
    fn rare_ones_replace_others() {
        let path = "/abc".repeat(3) + &(0..40).map(|n| format!("/w{n}x")).collect::<String>();
        let path = path + "/0f7a1c2e-1b2d-4c3e-9d4f-5a6b7c8d9e0f";
        let found = tokens(0, path.as_bytes(), []);
        assert_eq!(found.len(), TOKENS_MOST);
        assert!(found.iter().any(|token| token.rarity() == 3), "{found:?}");
    }

    #[test]
    fn how_rare_it_looks() {
        for (text, rarity) in [
            ("abc", 0),
            ("a12", 0),
            ("ab1c", 0),
            ("ab12", 1),
            ("abcdefg", 0),
            ("abcdef1h", 0),
            ("abcdef12", 2),
            ("abcdefghijklmno", 0),
            ("abcdefghijklmnop", 0),
            ("abcdefghijklmn12", 2),
            ("abcdefghijklm123", 3),
        ] {
            let token = Token::of(0, text.as_bytes()).unwrap();
            assert_eq!(token.rarity(), rarity, "{text}");
        }
    }

    /// Without the seed a hash tells nothing, and each of its bits tells as much.
    #[test]
    fn bits_of_a_hash() {
        let of = |seed: u64, n: u32| Token::of(seed, format!("user{n}x").as_bytes()).unwrap();
        let plain = of(0, 7).to_u32() >> 2;
        assert!((0..64).all(|bit| of(1 << bit, 7).to_u32() >> 2 != plain));
        for bit in 2..32 {
            let set =
                |seed: u64| (0..2000).filter(move |n| of(seed, *n).to_u32() & (1 << bit) != 0);
            assert!((800..1200).contains(&set(7).count()), "{bit}");
            assert!((800..1200).contains(&set(!7).count()), "{bit}");
        }
    }

    #[test]
    fn of_those_that_look_alike_the_first_ones_stay() {
        let texts: Vec<String> = (0..20).map(|n| format!("word{n:04}x")).collect();
        let of = |text: &String| Token::of(0, text.as_bytes()).unwrap();
        let found = tokens(0, format!("/{}", texts.join("/")).as_bytes(), []);
        let expected: Vec<Token> = texts.iter().take(TOKENS_MOST).map(of).collect();
        assert_eq!(found, expected);
    }

    /// A value without a name, one behind a long path, and those of several headers.
    #[test]
    fn identifiers_at_odd_places() {
        let id = Token::of(7, b"9b1deb4d").unwrap();
        let long = format!("/{}?id=9b1deb4d", "a".repeat(2000));
        let others: [&[u8]; 3] = [b"a=xyz1", b"b=xyz2", b"9b1deb4d"];
        for found in [
            tokens(7, b"/x?9b1deb4d", []),
            tokens(7, long.as_bytes(), []),
            tokens(7, b"/", others),
        ] {
            assert!(found.contains(&id), "{found:?}");
        }
    }

    /// So much of all headers together is looked at, and so many parts.
    #[test]
    fn many_headers_cost_no_more_than_one() {
        let id = Token::of(7, b"9b1deb4d").unwrap();
        let found = |before: &str, times: usize| {
            let headers = std::iter::repeat_n(before.as_bytes(), times);
            tokens(7, b"/", headers.chain([&b"9b1deb4d"[..]])).contains(&id)
        };
        assert!(found("a", LOOKED_AT_PARTS - 1) && !found("a", LOOKED_AT_PARTS));
        let half = "a".repeat(LOOKED_AT / 2);
        assert!(found(&half, 1) && !found(&half, 2));
    }

    #[test]
    fn a_long_word_is_an_identifier() {
        let word = |length: usize| format!("/a/{}", "x".repeat(length));
        assert!(!same(&word(40), "/a/7"));
        assert!((49..80).all(|length| same(&word(length), "/a/7")));
    }

    /// An identifier near the beginning counts, whatever follows.
    #[test]
    fn long_texts() {
        let id = "0f7a1c2e-1b2d-4c3e-9d4f-5a6b7c8d9e0f";
        let of = Token::of(0, id.as_bytes()).unwrap();
        let many = |between: &str| {
            (0..14_000)
                .map(|n| format!("{between}{n}"))
                .collect::<String>()
        };
        let path = format!("/{id}{}", many("/a"));
        let query = format!("/x?id={id}{}", many("&a="));
        let cookie = format!("id={id}{}", many("; a="));
        assert!(tokens(0, path.as_bytes(), []).contains(&of));
        assert!(tokens(0, query.as_bytes(), []).contains(&of));
        assert!(tokens(0, b"/", [cookie.as_bytes()]).contains(&of));
        let long = "a1".repeat(30_000);
        assert_eq!(
            tokens(0, long.as_bytes(), [long.as_bytes(), b"x=9b1deb4d"]).len(),
            1
        );
    }

    proptest! {
        #[test]
        fn any_text_has_a_signature(a: Vec<u8>, b: Vec<u8>, c: Vec<u8>) {
            kind(&a, &b, &c);
            prop_assert!(tokens(1, &a, [b.as_slice(), &c]).len() <= TOKENS_MOST);
        }
    }
}
