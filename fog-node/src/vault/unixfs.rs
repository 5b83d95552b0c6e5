//! Large records as IPFS keeps files: UnixFS version 1, exactly as Kubo's `ipfs add --cid-version=1 --raw-leaves` makes them, and
//! nothing else.
//!
//! Raw leaves of 262,144 bytes, the last one shorter; nodes of at most 174 links in dag-pb, all leaves at one depth, filled from the
//! left; a file of one leaf has no node. So the form of a file follows from its length alone, and what is decoded has that form to
//! the byte or is refused: a node can neither promise more than it has nor hide anything beside it.
//! (Formats: specs.ipfs.tech/unixfs, ipld.io/specs/codecs/dag-pb.)

use std::ops::Range;

use cid::Cid;
use record::canonical::{DAG_PB, RAW, SHA2_256, cid_under};

/// Bytes of a leaf, all but the last: the default of Kubo and js-ipfs.
pub(super) const LEAF_BYTES: usize = 262_144;
/// Links of a node, at most: the default of Kubo and js-ipfs.
const LINKS_MAX: usize = 174;
/// Bytes of a node, at most: with 174 links they have less than 10,000.
pub(super) const NODE_BYTES_MAX: usize = 16 << 10;
/// Levels of nodes above the leaves, at most.
const LEVELS_MAX: u8 = 2;
/// Bytes that a file of so many levels holds, at most: 7.9 GB.
pub(super) const FILE_BYTES_MAX: u64 = span(LEVELS_MAX);

/// Bytes of content below something at this level that is full; leaves are at level 0.
const fn span(level: u8) -> u64 {
    let mut span = LEAF_BYTES as u64;
    let mut at = 0;
    while at < level {
        span *= LINKS_MAX as u64;
        at += 1;
    }
    span
}

/// The level of the root of a file of so many bytes, if a file may have as many.
fn level_of(content: u64) -> Option<u8> {
    (0..=LEVELS_MAX).find(|level| content <= span(*level))
}

/// What a file's root or a link in it leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// The block's identifier.
    pub(super) cid: Cid,
    /// Bytes of the file's content below it.
    pub(super) content: u64,
    /// Bytes of its block and of all blocks below it (`Tsize`).
    total: u64,
}

impl Link {
    /// To a leaf of these bytes.
    pub(super) fn leaf(bytes: &[u8]) -> Self {
        Self {
            cid: cid_under(RAW, bytes),
            content: bytes.len() as u64,
            total: bytes.len() as u64,
        }
    }
}

/// A node: the links to what is below it, in the order of the content.
#[derive(Debug)]
pub(super) struct Node(Vec<Link>);

impl Node {
    fn content(&self) -> u64 {
        self.0.iter().map(|link| link.content).sum()
    }

    /// The block, and the link that leads to it.
    fn block(&self) -> (Link, Vec<u8>) {
        let block = self.encode();
        let below: u64 = self.0.iter().map(|link| link.total).sum();
        let link = Link {
            cid: cid_under(DAG_PB, &block),
            content: self.content(),
            total: below + block.len() as u64,
        };
        (link, block)
    }

    /// Protobuf, as dag-pb orders it: the links first (`PBLink`: hash, an empty name, total size), then what UnixFS says (`Data`: a
    /// file, its length, the lengths below each link).
    fn encode(&self) -> Vec<u8> {
        let mut block = Vec::with_capacity(64 * self.0.len());
        for link in &self.0 {
            let cid = link.cid.to_bytes();
            let mut entry = vec![0x0a];
            number(&mut entry, cid.len() as u64);
            entry.extend_from_slice(&cid);
            entry.extend_from_slice(&[0x12, 0, 0x18]);
            number(&mut entry, link.total);
            block.push(0x12);
            number(&mut block, entry.len() as u64);
            block.extend_from_slice(&entry);
        }
        let mut file = vec![0x08, 2, 0x18];
        number(&mut file, self.content());
        for link in &self.0 {
            file.push(0x20);
            number(&mut file, link.content);
        }
        block.push(0x0a);
        number(&mut block, file.len() as u64);
        block.extend_from_slice(&file);
        block
    }

    /// The node at a place of a file, or the root of one; nothing if its bytes are not exactly those of a file of that length.
    /// The caller has compared them with the identifier. Gives the places below it.
    pub(super) fn decode(block: &[u8], place: Option<&Place>) -> Option<Vec<Place>> {
        if block.len() > NODE_BYTES_MAX {
            return None;
        }
        let node = Self::parse(block)?;
        let sum = |of: fn(&Link) -> u64| node.0.iter().try_fold(0_u64, |sum, link| sum.checked_add(of(link)));
        let content = sum(|link| link.content)?;
        sum(|link| link.total)?.checked_add(block.len() as u64)?;
        let level = match place {
            Some(place) => place.level,
            None => level_of(content)?,
        };
        let below = level.checked_sub(1)?;
        let full = span(below);
        let (last, others) = node.0.split_last()?;
        let is_filled = others.iter().all(|link| link.content == full) && (1..=full).contains(&last.content);
        let is_told = node.0.iter().all(|link| {
            let is_leaf = link.cid.codec() == RAW;
            is_leaf == (below == 0) && (!is_leaf || link.total == link.content)
        });
        let (own, bytes) = node.block();
        let is_meant = place.is_none_or(|place| place.link == own);
        let mut start = place.map_or(0, |place| place.start);
        let places = node.0.iter().map(|link| {
            let at = start;
            start += link.content;
            Place {
                link: *link,
                level: below,
                start: at,
            }
        });
        (is_filled && is_told && is_meant && bytes == block).then(|| places.collect())
    }

    fn parse(block: &[u8]) -> Option<Self> {
        let mut rest = Reader(block);
        let (mut ends, mut links) = (Vec::new(), Vec::new());
        while rest.0.first() == Some(&0x12) {
            let mut entry = rest.field(0x12)?;
            let cid = Cid::read_bytes(entry.field(0x0a)?.0).ok()?;
            // Anything else would be bytes that no hash of ours covers.
            let is_ours = cid.version() == cid::Version::V1
                && cid.hash().code() == SHA2_256
                && cid.hash().size() == 32
                && [RAW, DAG_PB].contains(&cid.codec());
            if !is_ours || !entry.field(0x12)?.0.is_empty() || ends.len() == LINKS_MAX {
                return None;
            }
            ends.push((cid, entry.number(0x18)?));
        }
        let mut file = rest.field(0x0a)?;
        if file.number(0x08)? != 2 {
            return None;
        }
        let _length = file.number(0x18)?;
        for (cid, total) in ends {
            let content = file.number(0x20)?;
            links.push(Link { cid, content, total });
        }
        // Whatever is left, or was written otherwise, shows when the node is encoded again.
        Some(Self(links))
    }
}

/// A block's place in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// What leads to it.
    pub(super) link: Link,
    /// How far above the leaves it is.
    level: u8,
    /// The first byte of the file's content below it.
    pub(super) start: u64,
}

impl Place {
    /// Whether a leaf is here.
    pub(super) const fn is_leaf(&self) -> bool {
        self.level == 0
    }

    /// Bytes of the block, at most.
    pub(super) fn block_bytes_max(&self) -> usize {
        if self.is_leaf() { LEAF_BYTES } else { NODE_BYTES_MAX }
    }

    /// Whether something of this part of the file is below it.
    pub(super) fn touches(&self, part: &Range<u64>) -> bool {
        self.start < part.end && part.start < self.start + self.link.content
    }
}

/// What is left of a message.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn tag(&mut self, tag: u8) -> Option<()> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        (*first == tag).then_some(())
    }

    /// A number behind this tag.
    fn number(&mut self, tag: u8) -> Option<u64> {
        self.tag(tag)?;
        self.varint()
    }

    fn varint(&mut self) -> Option<u64> {
        let mut number = 0_u64;
        for shift in (0..63).step_by(7) {
            let (first, rest) = self.0.split_first()?;
            self.0 = rest;
            number |= u64::from(first & 0x7f) << shift;
            if first & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    /// What is behind this tag and its length.
    fn field(&mut self, tag: u8) -> Option<Reader<'a>> {
        self.tag(tag)?;
        let length = usize::try_from(self.varint()?).ok()?;
        let (field, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(Reader(field))
    }
}

/// A number as protobuf and CAR write it: seven bits a byte, the lowest first (unsigned LEB128).
pub(super) fn number(to: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        to.push(u8::try_from(number & 0x7f).expect("seven bits") | 0x80);
        number >>= 7;
    }
    to.push(u8::try_from(number).expect("seven bits"));
}

/// A file that is being made: what has no node above it yet, level by level.
#[derive(Debug, Default)]
pub(super) struct Layout(Vec<Vec<Link>>);

/// A node's block and its identifier.
pub(super) type Made = (Cid, Vec<u8>);

impl Layout {
    /// Adds the next leaf; the nodes that are complete with it.
    pub(super) fn leaf(&mut self, leaf: Link) -> Vec<Made> {
        let (mut made, mut link) = (Vec::new(), leaf);
        for level in 0.. {
            if self.0.len() == level {
                self.0.push(Vec::new());
            }
            self.0[level].push(link);
            if self.0[level].len() < LINKS_MAX {
                break;
            }
            let (above, block) = Node(std::mem::take(&mut self.0[level])).block();
            made.push((above.cid, block));
            link = above;
        }
        made
    }

    /// The root, and the nodes that were not complete before; nothing without a leaf.
    pub(super) fn finish(self) -> Option<(Link, Vec<Made>)> {
        let (mut made, mut below) = (Vec::new(), None);
        let rows = self.0.len();
        for (level, mut row) in self.0.into_iter().enumerate() {
            row.extend(below.take());
            if let ([root], true) = (&row[..], level + 1 == rows) {
                return Some((*root, made));
            }
            if !row.is_empty() {
                let (above, block) = Node(row).block();
                made.push((above.cid, block));
                below = Some(above);
            }
        }
        Some((below?, made))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Bytes that nobody drew: those that the identifiers below were made of by the importer of js-ipfs.
    pub(in crate::vault) fn content(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|i| ((i ^ (i >> 8) ^ (i >> 16)) & 0xff) as u8).collect()
    }

    /// The root and the nodes of a file, the root last.
    fn made(content: &[u8]) -> (Link, Vec<Made>) {
        let mut layout = Layout::default();
        let mut nodes = Vec::new();
        let none: &[u8] = &[];
        let leaves = content.chunks(LEAF_BYTES).chain(content.is_empty().then_some(none));
        for leaf in leaves {
            nodes.extend(layout.leaf(Link::leaf(leaf)));
        }
        let (root, last) = layout.finish().expect("a leaf");
        nodes.extend(last);
        (root, nodes)
    }

    #[test]
    fn files_have_the_identifiers_that_other_ipfs_software_gives_them() {
        // Made by ipfs-unixfs-importer (js-ipfs 0.66.1); tests/vault/run asks the programs themselves.
        for (bytes, cid) in [
            (0, "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"),
            (1, "bafkreidogqfzz75tpkmjzjke425xqcrmpcib2p5tg44hnbirumdbpl5adu"),
            (262_144, "bafkreibk4imp4vfvvubmke75lnuxrkdktehi5jb6qb43iiy2o4wgc27uoq"),
            (262_145, "bafybeicamqnf4dfq6ggj63ljgj5j5ide2e3e3nkh4ef7etrsns2a37a4rm"),
            (524_288, "bafybeiaqxpfwd6ix3h7tdqn3ierrpbrfrdqenlfr2dizjlenzwzk5ihtge"),
            (
                174 * 262_144,
                "bafybeidml6zcda6mjx4s6hb2a7y6l4rw7kraswoutgu5kzflivxv6ozug4",
            ),
            (
                174 * 262_144 + 1,
                "bafybeifvufoggkhtbxtrjbu6jnzu7v2v73auxq4xa5ll6632imtfsjyolm",
            ),
        ] {
            let (root, nodes) = made(&content(bytes));
            assert_eq!((root.cid.to_string().as_str(), root.content), (cid, bytes as u64));
            assert_eq!(nodes.last().map_or(root.cid, |(cid, _)| *cid), root.cid);
        }
    }

    #[test]
    fn a_node_has_these_bytes() {
        let (_, nodes) = made(&content(262_145));
        let expected = "122c0a24015512202ae218fe54b5ad02c513fd5b6978a86a990e8ea43e8079b4231a772c616bf47412001880801012\
                        2a0a2401551220e52d9c508c502347344d8c07ad91cbd6068afc75ff6292f062a09ca381c89e71120018010a0c0802\
                        18818010208080102001";
        assert_eq!(hex::encode(&nodes[0].1), expected);
    }

    #[test]
    fn what_is_made_is_read_again_from_the_root_down() {
        for bytes in [262_145, 524_288, 174 * 262_144, 174 * 262_144 + 1, 176 * 262_144 + 5] {
            let (root, nodes) = made(&content(bytes));
            let block = |cid: &Cid| &nodes.iter().find(|(made, _)| made == cid).expect("made").1;
            let mut places = Node::decode(block(&root.cid), None).expect("ours");
            let mut end = 0;
            while let Some(at) = places.iter().position(|place| !place.is_leaf()) {
                let below = Node::decode(block(&places[at].link.cid), Some(&places[at])).expect("ours");
                places.splice(at..=at, below);
            }
            for place in &places {
                assert_eq!(place.start, end);
                assert!(place.touches(&(end..end + 1)) && !place.touches(&(0..end)));
                end += place.link.content;
            }
            assert_eq!((end, places.len()), (bytes as u64, bytes.div_ceil(LEAF_BYTES)));
        }
    }

    #[test]
    fn no_changed_byte_of_a_node_goes_through() {
        let (root, nodes) = made(&content(3 * 262_144 + 9));
        let block = nodes[0].1.clone();
        let place = Place {
            link: root,
            level: 1,
            start: 0,
        };
        assert!(Node::decode(&block, Some(&place)).is_some());
        for at in 0..block.len() {
            for bit in 0..8 {
                let mut altered = block.clone();
                altered[at] ^= 1 << bit;
                // Who knows what should come sees it, whatever it says; a root is known by its hash alone.
                assert!(Node::decode(&altered, Some(&place)).is_none(), "byte {at}, bit {bit}");
            }
        }
        for length in 0..block.len() {
            assert!(Node::decode(&block[..length], None).is_none(), "cut at {length}");
        }
        assert!(
            Node::decode(&[&block[..], b"\x0a\x00"].concat(), None).is_none(),
            "something behind it"
        );
    }

    #[test]
    fn a_root_that_is_no_file_of_ours_is_refused() {
        let leaf = |bytes: usize| Link::leaf(&content(bytes));
        let encoded = |links: &[Link]| Node(links.to_vec()).encode();
        let full = leaf(LEAF_BYTES);
        assert!(Node::decode(&encoded(&[full, leaf(5)]), None).is_some());
        let many = Link {
            content: FILE_BYTES_MAX,
            ..full
        };
        let foreign = Link {
            cid: Cid::new_v1(0x71, *full.cid.hash()),
            ..full
        };
        let identity = Link {
            cid: Cid::new_v1(RAW, multihash(0, b"inline")),
            ..full
        };
        let other_hash = Link {
            cid: Cid::new_v1(RAW, multihash(0x13, &[7; 32])),
            ..full
        };
        let grown = Link {
            total: full.total + 1,
            ..full
        };
        let node = Link {
            cid: Cid::new_v1(DAG_PB, *full.cid.hash()),
            ..full
        };
        for (why, links) in [
            ("no links", vec![]),
            ("one link: the leaf is its own root", vec![full]),
            ("a short leaf that is not the last", vec![leaf(5), full]),
            ("an empty leaf", vec![full, leaf(0)]),
            ("a leaf that is too long", vec![leaf(LEAF_BYTES + 1), leaf(5)]),
            ("more than there can be", vec![many, many]),
            ("another codec", vec![full, foreign]),
            ("a hash that is none", vec![full, identity]),
            ("another hash", vec![full, other_hash]),
            ("a leaf with something below it", vec![full, grown]),
            ("leaves and nodes in one row", vec![full, node]),
            ("too many links", vec![full; LINKS_MAX + 1]),
        ] {
            assert!(Node::decode(&encoded(&links), None).is_none(), "{why}");
        }
        let endless = [0x12, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01];
        assert!(Node::decode(&endless, None).is_none());
        assert!(Node::decode(&vec![0x12; NODE_BYTES_MAX + 1], None).is_none());
    }

    fn multihash(code: u64, digest: &[u8]) -> cid::multihash::Multihash<64> {
        cid::multihash::Multihash::wrap(code, digest).expect("short")
    }

    #[test]
    fn numbers_are_written_as_protobuf_and_car_write_them() {
        let mut long = Vec::new();
        number(&mut long, 300);
        assert_eq!(long, [0xac, 0x02]);
    }
}
