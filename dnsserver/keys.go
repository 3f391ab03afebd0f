package dnsserver

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"pbxmesh/internal/reload"
)

// keyTTL is that of DNSKEY, CDS and CDNSKEY records, and of the DS records that are
// printed, in seconds: how long a key that is taken out is still in caches.
const keyTTL = 3600

// Bounds of a key directory.
const (
	maxKeyFile = 16 << 10 // bytes
	maxKeys    = 8        // of one zone
	maxKeyDir  = 4096     // files
)

// keyTime is how BIND writes the times of a key, in UTC.
const keyTime = "20060102150405"

// ErrNoKey says that a zone has no key that signs.
var ErrNoKey = errors.New("no key signs the zone")

// Key is a DNSSEC key of one zone as BIND's tools keep it: the public part in
// K<zone>+013+<tag>.key, the private one and the times in the .private file beside it.
// Only ECDSA P-256 with SHA-256 (algorithm 13) is used: small signatures, and quick.
type Key struct {
	DNSKEY *dns.DNSKEY
	Tag    uint16
	File   string // without extension

	// Publish and Delete bound the time in which the key stands in the zone, Activate
	// and Inactive that in which it signs. A zero time is no bound.
	Publish, Activate, Inactive, Delete time.Time

	signer crypto.Signer // nil: the private part is elsewhere, the key is published only
}

// Published reports whether the key stands in the zone at now.
func (k *Key) Published(now time.Time) bool { return between(now, k.Publish, k.Delete) }

// Active reports whether the key signs at now.
func (k *Key) Active(now time.Time) bool {
	return k.signer != nil && k.Published(now) && between(now, k.Activate, k.Inactive)
}

// SEP reports whether the parent zone's DS record is for this key: it signs the keys,
// and all other records too unless the zone has active keys without that flag.
func (k *Key) SEP() bool { return k.DNSKEY.Flags&dns.SEP != 0 }

// DS returns what the parent zone publishes of the key: a SHA-256 digest.
func (k *Key) DS() *dns.DS {
	ds := k.DNSKEY.ToDS(dns.SHA256)
	ds.Hdr.Ttl = keyTTL
	return ds
}

func between(now, from, to time.Time) bool {
	return (from.IsZero() || !now.Before(from)) && (to.IsZero() || now.Before(to))
}

// ReadKeys reads the keys of a zone from dir, in the order of their tags. Keys of other
// zones are left alone. Errors name the file; a zone without keys is none.
func ReadKeys(dir, zone string) ([]*Key, error) {
	zone = strings.ToLower(dns.Fqdn(zone))
	files, err := keyFiles(dir)
	if err != nil {
		return nil, err
	}
	var keys []*Key
	for _, file := range files {
		base, isPublic := strings.CutSuffix(file, ".key")
		if !isPublic || !strings.HasPrefix(strings.ToLower(base), "k"+zone+"+") {
			continue
		}
		k, err := readKey(filepath.Join(dir, base), zone)
		if err != nil {
			return nil, err
		}
		keys = append(keys, k)
	}
	if len(keys) > maxKeys {
		return nil, fmt.Errorf("%s holds %d keys of %s, at most %d are allowed: remove old ones", dir, len(keys), zone, maxKeys)
	}
	slices.SortFunc(keys, func(a, b *Key) int { return cmp.Compare(a.Tag, b.Tag) })
	for i, k := range keys[:max(len(keys)-1, 0)] {
		if k.Tag == keys[i+1].Tag {
			return nil, fmt.Errorf("%s and %s have the same tag: make another key", k.File, keys[i+1].File)
		}
	}
	return keys, nil
}

// keyFiles returns the names of the key files in dir.
func keyFiles(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(maxKeyDir + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if len(names) > maxKeyDir {
		return nil, fmt.Errorf("%s holds more than %d files: name a folder of its own for the keys", dir, maxKeyDir)
	}
	names = slices.DeleteFunc(names, func(n string) bool {
		return !strings.HasPrefix(n, "K") || !strings.HasSuffix(n, ".key") && !strings.HasSuffix(n, ".private")
	})
	slices.Sort(names)
	return names, nil
}

func readKey(base, zone string) (*Key, error) {
	public, err := reload.ReadFile(base+".key", maxKeyFile)
	if err != nil {
		return nil, err
	}
	rr, err := dns.ReadRR(bytes.NewReader(public), "")
	key, ok := rr.(*dns.DNSKEY)
	switch {
	case err != nil || !ok:
		return nil, fmt.Errorf("%s.key holds no DNSKEY record", base)
	case !strings.EqualFold(key.Hdr.Name, zone):
		return nil, fmt.Errorf("%s.key is a key of %s, not of %s", base, key.Hdr.Name, zone)
	case key.Algorithm != dns.ECDSAP256SHA256:
		return nil, fmt.Errorf("%s.key has the algorithm %d, only 13 (ECDSAP256SHA256) is used: make one with pbxmesh dns keygen", base, key.Algorithm)
	case key.Flags&dns.ZONE == 0 || key.Flags&dns.REVOKE != 0 || key.Protocol != 3:
		return nil, fmt.Errorf("%s.key is no key that signs a zone (flags %d)", base, key.Flags)
	}
	key.Hdr = dns.RR_Header{Name: zone, Rrtype: dns.TypeDNSKEY, Class: dns.ClassINET, Ttl: keyTTL}
	k := &Key{DNSKEY: key, Tag: key.KeyTag(), File: base}
	return k, k.readPrivate()
}

func (k *Key) readPrivate() error {
	file := k.File + ".private"
	info, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if perm := info.Mode().Perm(); perm&0o007 != 0 {
		return fmt.Errorf("%s is open to every user (mode %04o): run chmod o-rwx %s, and replace the key", file, perm, file)
	}
	src, err := reload.ReadFile(file, maxKeyFile)
	if err != nil {
		return err
	}
	private, err := k.DNSKEY.NewPrivateKey(string(src))
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	pair, ok := private.(*ecdsa.PrivateKey)
	if !ok {
		return fmt.Errorf("%s is no ECDSA key", file)
	}
	k.signer = deterministic{pair}
	if !k.matches() {
		return fmt.Errorf("%s does not belong to the .key file beside it", file)
	}
	for _, t := range []struct {
		field string
		to    *time.Time
	}{{"Publish", &k.Publish}, {"Activate", &k.Activate}, {"Inactive", &k.Inactive}, {"Delete", &k.Delete}} {
		if *t.to, err = keyTimeOf(src, t.field); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	return nil
}

// matches reports whether the private part made the public one.
func (k *Key) matches() bool {
	set := []dns.RR{k.DNSKEY}
	sig := &dns.RRSIG{Algorithm: k.DNSKEY.Algorithm, KeyTag: k.Tag, SignerName: k.DNSKEY.Hdr.Name, Expiration: 1}
	return sig.Sign(k.signer, set) == nil && sig.Verify(k.DNSKEY, set) == nil
}

func keyTimeOf(src []byte, field string) (time.Time, error) {
	for lines := bufio.NewScanner(bytes.NewReader(src)); lines.Scan(); {
		name, value, ok := strings.Cut(lines.Text(), ":")
		if !ok || name != field {
			continue
		}
		t, err := time.Parse(keyTime, strings.TrimSpace(value))
		if err != nil {
			return time.Time{}, fmt.Errorf("the time of %s is no %s", field, "YYYYMMDDHHMMSS")
		}
		return t, nil
	}
	return time.Time{}, nil
}

// deterministic signs by RFC 6979: name servers that share a key then make the same
// signature, byte for byte.
type deterministic struct{ crypto.Signer }

// Sign implements crypto.Signer; ecdsa takes no random source as the wish for RFC 6979.
func (d deterministic) Sign(_ io.Reader, digest []byte, o crypto.SignerOpts) ([]byte, error) {
	return d.Signer.Sign(nil, digest, o)
}

// GenerateKey makes a key for zone that signs everything (a combined signing key,
// flags 257), and writes both files into dir, the private one with mode 0600. It stands
// in the zone from publish on and signs from activate on. Files that are there are never
// overwritten.
func GenerateKey(dir, zone string, publish, activate time.Time) (*Key, error) {
	zone = strings.ToLower(dns.Fqdn(zone))
	for try := 0; ; try++ {
		key := &dns.DNSKEY{
			Hdr:   dns.RR_Header{Name: zone, Rrtype: dns.TypeDNSKEY, Class: dns.ClassINET, Ttl: keyTTL},
			Flags: dns.ZONE | dns.SEP, Protocol: 3, Algorithm: dns.ECDSAP256SHA256,
		}
		private, err := key.Generate(256)
		if err != nil {
			return nil, fmt.Errorf("make a key: %w", err)
		}
		base := filepath.Join(dir, fmt.Sprintf("K%s+%03d+%05d", zone, key.Algorithm, key.KeyTag()))
		from, active := publish.UTC().Format(keyTime), activate.UTC().Format(keyTime)
		err = writeNew(base+".private", 0o600, fmt.Sprintf("%sCreated: %s\nPublish: %s\nActivate: %s\n", key.PrivateKeyString(private), from, from, active))
		if errors.Is(err, fs.ErrExist) && try < 8 {
			continue // another key has this tag
		}
		if err == nil {
			err = writeNew(base+".key", 0o644, fmt.Sprintf("; Combined signing key of %s, tag %d. Copy both files to every name server.\n%s\n", zone, key.KeyTag(), key))
		}
		if err != nil {
			return nil, fmt.Errorf("write a key: %w", err)
		}
		return readKey(base, zone)
	}
}

func writeNew(file string, mode os.FileMode, content string) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	return errors.Join(err, f.Sync(), f.Close())
}
