#!/usr/bin/env python3
"""Checks Cargo.lock and the dependency graph against deny.toml: advisories, bans, licences, sources.

It reads the same deny.toml as cargo-deny and knows the part of it that this repository uses. It exists because building
cargo-deny takes longer than the whole of CI. Exit 0: nothing found; 1: findings, each on a line of its own.

    .ci/deny.py               check; ADVISORY_DB=PATH names the advisory database, a RustSec checkout or its .tar.gz
    .ci/deny.py --self-test   test the matcher and each rule on small made-up inputs
"""

import argparse
import datetime
import json
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import tomllib
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent
DATABASE_DEFAULT = ROOT.parent / "shared" / "advisory-db.tar.gz"
CRATES_IO = "registry+https://github.com/rust-lang/crates.io-index"
EXPIRES = re.compile(r"expires (\d{4}-\d{2}-\d{2})")


# === Versions and requirements, as Cargo means them ===


def version_key(text):
    """A version as something that sorts by semver's precedence: 1.0.0-rc.1 before 1.0.0, build metadata left out."""
    core, _, pre = text.split("+")[0].partition("-")
    numbers = tuple(int(n) for n in core.split("."))
    if len(numbers) != 3:
        raise ValueError(f"not a version: {text!r}")
    # Numeric identifiers sort before words; no pre-release sorts after any.
    parts = tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in pre.split(".")) if pre else ()
    return numbers, (0, parts) if pre else (1, ())


class Comparator:
    """One comparator of a requirement, as a half-open interval of versions."""

    FORM = re.compile(r"(>=|<=|>|<|=|\^|~)?\s*v?(\d+|[*xX])(?:\.(\d+|[*xX]))?(?:\.(\d+|[*xX]))?(?:-([0-9A-Za-z.-]+))?(?:\+.*)?")

    def __init__(self, text):
        match = self.FORM.fullmatch(text.strip())
        if not match:
            raise ValueError(f"not a version requirement: {text!r}")
        operator, *numbers, pre = match.groups()
        given = [int(n) for n in numbers if n and n.isdigit()]
        floor = tuple(given + [0] * (3 - len(given)))
        exact = version_key(".".join(map(str, floor)) + (f"-{pre}" if pre else ""))
        wild = len(given) < 3
        self.low, self.low_open, self.high, self.high_open = None, False, None, True
        if not given:  # "*"
            return
        above = self._bump(floor, len(given) - 1)
        match operator or ("~" if any(n and not n.isdigit() for n in numbers) else "^"):
            case ">=":
                self.low = exact
            case ">":
                self.low, self.low_open = (above, False) if wild else (exact, True)
            case "<":
                self.high = exact if pre else self._before(floor)
            case "<=":
                self.high, self.high_open = (above, True) if wild else (exact, False)
            case "=":
                self.low = exact
                self.high, self.high_open = (above, True) if wild else (exact, False)
            case "~":
                self.low, self.high = exact, self._bump(floor, min(len(given) - 1, 1))
            case "^":
                first = next((i for i, n in enumerate(given) if n), len(given) - 1)
                self.low, self.high = exact, self._bump(floor, first)

    @staticmethod
    def _before(numbers):
        """Below every pre-release of these numbers: a pre-release of the bound counts as still affected."""
        return numbers, (-1, ())

    @classmethod
    def _bump(cls, floor, position):
        return cls._before(tuple(floor[:position]) + (floor[position] + 1,) + (0,) * (2 - position))

    def matches(self, key):
        if self.low is not None and (key < self.low or (self.low_open and key == self.low)):
            return False
        return self.high is None or key < self.high or (not self.high_open and key == self.high)


def matches(requirement, version):
    """Whether a version meets a requirement such as ">= 1.2, < 2"."""
    key = version_key(version)
    return all(Comparator(part).matches(key) for part in requirement.split(",") if part.strip())


# === Advisories ===


def read_advisory(text):
    """The TOML head of a RustSec advisory file."""
    head = re.match(r"\s*```toml\n(.*?)\n```", text, re.DOTALL)
    if not head:
        raise ValueError("no TOML head")
    return tomllib.loads(head.group(1))


def is_affected(advisory, version):
    """Whether a version is neither patched nor outside what the advisory is about."""
    versions = advisory.get("versions", {})
    safe = versions.get("patched", []) + versions.get("unaffected", [])
    return not any(matches(requirement, version) for requirement in safe)


def advisory_findings(packages, advisories, ignores, today):
    """One line for each advisory that hits a locked package, and for each ignore that is expired, unexplained or unused."""
    findings, used = [], set()
    ignored = {}
    for ignore in ignores:
        expiry = EXPIRES.search(ignore.get("reason", ""))
        if not expiry:
            findings.append(f"advisories: ignore of {ignore['id']} has no reason with 'expires YYYY-MM-DD'")
        elif datetime.date.fromisoformat(expiry.group(1)) < today:
            findings.append(f"advisories: ignore of {ignore['id']} expired on {expiry.group(1)}: look at it again")
        ignored[ignore["id"]] = ignore
    by_name = {}
    for package in packages:
        by_name.setdefault(package["name"], []).append(package)
    for advisory in advisories:
        about = advisory["advisory"]
        kind = about.get("informational", "vulnerability")
        if "withdrawn" in about or kind == "notice":
            continue
        for package in by_name.get(about["package"], []):
            if package.get("source") != CRATES_IO or not is_affected(advisory, package["version"]):
                continue
            if about["id"] in ignored:
                used.add(about["id"])
                continue
            findings.append(f"advisories: {about['id']} ({kind}) hits {package['name']} {package['version']}")
    findings += [f"advisories: ignore of {i} is not needed any more: take it out" for i in sorted(set(ignored) - used)]
    return findings


def load_advisories(place):
    """All advisories about crates in a RustSec checkout or its .tar.gz; None if there is none at that place."""
    if not place.exists():
        return None
    if place.is_file():
        # Read in place: nothing is unpacked, so no path of the archive is ever written to.
        with tarfile.open(place) as archive:
            names = [m for m in archive if m.isfile() and re.search(r"crates/[^/]+/RUSTSEC-[^/]+\.md$", m.name)]
            texts = [archive.extractfile(m).read().decode("utf-8") for m in names]
        if not texts:
            raise SystemExit(f"advisories: no advisory in {place.name}: not a RustSec database")
        return [read_advisory(text) for text in texts]
    files = sorted(place.glob("crates/*/RUSTSEC-*.md"))
    if not files:
        raise SystemExit(f"advisories: no advisory in {place.name}: not a RustSec database")
    return [read_advisory(file.read_text(encoding="utf-8")) for file in files]


# === Bans, licences, sources ===


def ban_findings(graph, deny):
    """One line for each banned crate, for each that comes in by another way than allowed, and for each forbidden duplicate."""
    findings = []
    for rule in deny:
        name = rule.get("crate") or rule["name"]
        hits = [p for p in graph.values() if p["name"] == name]
        if rule.get("deny-multiple-versions"):
            if len(hits) > 1:
                versions = ", ".join(sorted(p["version"] for p in hits))
                findings.append(f"bans: {name} in {len(hits)} versions ({versions}): {rule['reason']}")
            continue
        for hit in hits:
            strangers = sorted({p["name"] for p in graph.values() if hit["id"] in p["needs"]} - set(rule.get("wrappers", [])))
            if strangers or "wrappers" not in rule:
                way = f" through {', '.join(strangers)}" if strangers else ""
                findings.append(f"bans: {name} {hit['version']}{way}: {rule['reason']}")
    return findings


def is_allowed(expression, allow):
    """Whether an SPDX expression can be met with the allowed licences ('/' is the old way to write OR)."""
    tokens = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))

    def any_of():
        result = all_of()
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            result = all_of() or result
        return result

    def all_of():
        result = one()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            result = one() and result
        return result

    def one():
        token = tokens.pop(0)
        if token == "(":
            result = any_of()
            tokens.pop(0)
            return result
        if tokens and tokens[0] == "WITH":
            token = f"{token} WITH {tokens[1]}"
            del tokens[:2]
        return token in allow

    return any_of()


def licence_findings(graph, licences):
    """One line for each package whose licence expression cannot be met."""
    exceptions = {e["crate"]: set(e["allow"]) for e in licences.get("exceptions", [])}
    findings = []
    for package in graph.values():
        allow = set(licences["allow"]) | exceptions.get(package["name"], set())
        if not package["license"]:
            findings.append(f"licenses: {package['name']} {package['version']} names none")
        elif not is_allowed(package["license"], allow):
            findings.append(f"licenses: {package['name']} {package['version']} is under {package['license']}")
    return findings


def source_findings(packages):
    """One line for each locked package that comes from anywhere but crates.io or this workspace."""
    strangers = [p for p in packages if p.get("source") not in (None, CRATES_IO)]
    return [f"sources: {p['name']} {p['version']} comes from {p['source']}" for p in strangers]


def load_graph(target):
    """The resolved dependency graph of one target, by package id."""
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", target]
    metadata = json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
    needs = {node["id"]: set(node["dependencies"]) for node in metadata["resolve"]["nodes"]}
    keep = ("id", "name", "version", "license")
    return {p["id"]: {k: p[k] for k in keep} | {"needs": needs[p["id"]]} for p in metadata["packages"] if p["id"] in needs}


def check(database):
    rules = tomllib.loads((ROOT / "deny.toml").read_text(encoding="utf-8"))
    packages = tomllib.loads((ROOT / "Cargo.lock").read_text(encoding="utf-8"))["package"]
    graphs = [load_graph(target) for target in rules["graph"]["targets"]]
    findings = source_findings(packages)
    for graph in graphs:
        findings += ban_findings(graph, rules["bans"]["deny"]) + licence_findings(graph, rules["licenses"])
    advisories = load_advisories(database)
    if advisories is None:
        print(not_checked(database))
        if os.environ.get("CI") == "true":
            findings.append("advisories: in CI the database must be there")
    else:
        ignores = rules["advisories"]["ignore"]
        findings += advisory_findings(packages, advisories, ignores, datetime.date.today())
        print(f"advisories: {len(advisories)} against {len(packages)} locked packages, {len(ignores)} ignored with a reason")
    print(f"bans, licenses: {sum(map(len, graphs))} packages; sources: {len(packages)} locked packages")
    for finding in findings:
        print(f"error: {finding}")
    print(verdict(findings, advisories is not None))
    return 1 if findings else 0


def not_checked(database):
    """What to do about a database that is not there: it is no part of this repository."""
    return f"advisories: NOT CHECKED (no database at {database}; set ADVISORY_DB=path to a RustSec checkout or its .tar.gz)"


def verdict(findings, advisories_were_checked):
    """The last line: what was not checked has not passed."""
    if findings:
        return f"deny: {len(findings)} finding(s)"
    return "deny: ok" if advisories_were_checked else "deny: bans, licenses and sources ok; 1 check NOT RUN: advisories"


# === Tests ===


class Requirements(unittest.TestCase):
    def check(self, requirement, inside, outside):
        for version in inside:
            self.assertTrue(matches(requirement, version), f"{version} should meet {requirement}")
        for version in outside:
            self.assertFalse(matches(requirement, version), f"{version} should not meet {requirement}")

    def test_order(self):
        order = ["1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta.2", "1.0.0-beta.11", "1.0.0-rc.1", "1.0.0", "1.0.1", "1.2.0", "1.10.0"]
        self.assertEqual(sorted(order, key=version_key), order)
        self.assertEqual(version_key("1.2.3+build"), version_key("1.2.3"))

    def test_comparisons(self):
        self.check(">= 0.9.1", ["0.9.1", "0.10.0", "1.0.0"], ["0.9.0", "0.9.1-rc.1"])
        self.check("> 1.2.3", ["1.2.4"], ["1.2.3", "1.2.2"])
        self.check("> 1.2", ["1.3.0"], ["1.2.9", "1.2.0"])
        self.check("< 2", ["1.99.0"], ["2.0.0", "2.0.0-rc.1"])
        self.check("<= 1.2", ["1.2.9", "1.1.0"], ["1.3.0"])
        self.check("<= 1.2.3", ["1.2.3"], ["1.2.4"])
        self.check("= 1.2.3", ["1.2.3"], ["1.2.4", "1.2.3-rc.1"])
        self.check("=1.2", ["1.2.0", "1.2.7"], ["1.3.0"])
        self.check(">= 1.0.0-rc.2", ["1.0.0-rc.2", "1.0.0"], ["1.0.0-rc.1"])

    def test_caret_tilde_and_star(self):
        self.check("^1.2.3", ["1.2.3", "1.9.0"], ["1.2.2", "2.0.0"])
        self.check("1.2.3", ["1.2.3", "1.9.0"], ["2.0.0"])
        self.check("^0.2.3", ["0.2.3", "0.2.9"], ["0.3.0", "0.2.2"])
        self.check("^0.0.3", ["0.0.3"], ["0.0.4"])
        self.check("^0.0", ["0.0.9"], ["0.1.0"])
        self.check("^0", ["0.9.9"], ["1.0.0"])
        self.check("~1.2.3", ["1.2.3", "1.2.9"], ["1.3.0", "1.2.2"])
        self.check("~1.2", ["1.2.0"], ["1.3.0"])
        self.check("~1", ["1.9.0"], ["2.0.0"])
        self.check("1.2.*", ["1.2.0", "1.2.9"], ["1.3.0"])
        self.check("1.*", ["1.0.0", "1.9.9"], ["2.0.0"])
        self.check("*", ["0.0.1", "9.9.9"], [])

    def test_conjunctions_and_nonsense(self):
        self.check(">= 1.2.0, < 1.3.0", ["1.2.0", "1.2.9"], ["1.1.9", "1.3.0"])
        for nonsense in ["latest", ">= ", "1.2.3.4", "=> 1"]:
            with self.assertRaises(ValueError):
                matches(nonsense, "1.0.0")


class Rules(unittest.TestCase):
    TODAY = datetime.date(2026, 1, 1)
    LOCKED = [{"name": "leaky", "version": "1.0.0", "source": CRATES_IO}]

    def advisory(self, **about):
        return {"advisory": {"id": "RUSTSEC-2026-0001", "package": "leaky"} | about, "versions": {"patched": [">= 1.0.1"]}}

    def findings(self, advisory, ignores=(), locked=None):
        return advisory_findings(locked or self.LOCKED, [advisory], list(ignores), self.TODAY)

    def ignore(self, reason):
        return [{"id": "RUSTSEC-2026-0001", "reason": reason}]

    def test_an_advisory_hits_what_is_not_patched(self):
        self.assertEqual(len(self.findings(self.advisory())), 1)
        self.assertIn("unmaintained", self.findings(self.advisory(informational="unmaintained"))[0])
        self.assertEqual(self.findings(self.advisory(), locked=[self.LOCKED[0] | {"version": "1.0.1"}]), [])
        self.assertEqual(self.findings(self.advisory(package="other")), [])
        self.assertEqual(self.findings(self.advisory(withdrawn="2026-01-01")), [])
        self.assertEqual(self.findings(self.advisory(informational="notice")), [])

    def test_an_unaffected_version_is_not_hit(self):
        advisory = self.advisory()
        advisory["versions"]["unaffected"] = ["< 1.0.0"]
        self.assertEqual(self.findings(advisory, locked=[self.LOCKED[0] | {"version": "0.9.0"}]), [])

    def test_an_ignore_needs_reason_expiry_and_use(self):
        self.assertEqual(self.findings(self.advisory(), self.ignore("build time only, expires 2026-06-01")), [])
        self.assertIn("no reason", self.findings(self.advisory(), self.ignore("because"))[0])
        self.assertIn("expired", self.findings(self.advisory(), self.ignore("expires 2025-12-31"))[0])
        self.assertIn("not needed", self.findings(self.advisory(package="other"), self.ignore("expires 2026-06-01"))[0])

    def test_what_was_not_checked_has_not_passed(self):
        self.assertIsNone(load_advisories(pathlib.Path("/nowhere")))
        self.assertIn("NOT CHECKED (no database at /nowhere; set ADVISORY_DB=", not_checked(pathlib.Path("/nowhere")))
        self.assertEqual(verdict([], True), "deny: ok")
        self.assertIn("1 check NOT RUN: advisories", verdict([], False))
        self.assertEqual(verdict(["x"], False), "deny: 1 finding(s)")

    def test_an_advisory_file_is_read(self):
        text = '```toml\n[advisory]\nid = "RUSTSEC-2026-0001"\npackage = "leaky"\n\n[versions]\npatched = []\n```\n\n# Title\n'
        self.assertTrue(is_affected(read_advisory(text), "1.0.0"))

    def graph(self, **needs):
        return {name: {"id": name, "name": name.split("@")[0], "version": "1.0.0", "license": "MIT", "needs": set(n)} for name, n in needs.items()}

    def test_a_ban_holds_but_for_its_wrappers(self):
        rule = {"crate": "ring", "reason": "why"}
        self.assertEqual(len(ban_findings(self.graph(ring=[], ours=["ring"]), [rule])), 1)
        self.assertEqual(ban_findings(self.graph(ring=[], quinn=["ring"]), [rule | {"wrappers": ["quinn"]}]), [])
        through = ban_findings(self.graph(ring=[], quinn=["ring"], ours=["ring"]), [rule | {"wrappers": ["quinn"]}])
        self.assertIn("through ours", through[0])

    def test_a_forbidden_duplicate_is_found(self):
        rule = {"crate": "tokio", "deny-multiple-versions": True, "reason": "one runtime"}
        twice = self.graph(**{"tokio@1": [], "tokio@2": []})
        self.assertEqual(len(ban_findings(twice, [rule])), 1)
        self.assertEqual(ban_findings(self.graph(tokio=[]), [rule]), [])

    def test_licence_expressions(self):
        allow = {"MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"}
        for good in ["MIT", "MIT OR GPL-3.0", "GPL-3.0/MIT", "(MIT OR GPL-3.0) AND Apache-2.0", "Apache-2.0 WITH LLVM-exception"]:
            self.assertTrue(is_allowed(good, allow), good)
        for bad in ["GPL-3.0", "MIT AND GPL-3.0", "MIT AND (GPL-3.0 OR ISC)", "GPL-2.0 WITH Classpath-exception-2.0"]:
            self.assertFalse(is_allowed(bad, allow), bad)

    def test_a_stranger_needs_an_exception(self):
        graph = self.graph(roots=[])
        graph["roots"]["license"] = "CDLA-Permissive-2.0"
        self.assertEqual(len(licence_findings(graph, {"allow": ["MIT"]})), 1)
        exception = {"crate": "roots", "allow": ["CDLA-Permissive-2.0"]}
        self.assertEqual(licence_findings(graph, {"allow": ["MIT"], "exceptions": [exception]}), [])

    def test_a_git_source_is_found(self):
        self.assertEqual(len(source_findings([{"name": "x", "version": "1.0.0", "source": "git+https://example.org/x"}])), 1)
        self.assertEqual(source_findings(self.LOCKED + [{"name": "ours", "version": "0.1.0"}]), [])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--self-test", action="store_true", help="test this program")
    parser.add_argument("--database", type=pathlib.Path, default=os.environ.get("ADVISORY_DB", DATABASE_DEFAULT))
    arguments = parser.parse_args()
    if arguments.self_test:
        return 0 if unittest.main(argv=[sys.argv[0]], exit=False).result.wasSuccessful() else 1
    try:
        return check(pathlib.Path(arguments.database))
    except subprocess.CalledProcessError as failed:
        print(f"deny: {' '.join(failed.cmd[:2])} failed; its message is above", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
