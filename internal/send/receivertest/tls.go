package receivertest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

// certificates makes a receiver's TLS of a kind, and a client's that trusts its
// authority.
func certificates(tb testing.TB, kind string) (server, client *tls.Config) {
	tb.Helper()
	if kind == "none" {
		return nil, &tls.Config{}
	}
	now := time.Now()
	authority := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "receivers' authority"},
		NotBefore: now.Add(-48 * time.Hour), NotAfter: now.Add(48 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "receiver"},
		NotBefore: now.Add(-24 * time.Hour), NotAfter: now.Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{Name},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	authorityKey, leafKey := key(tb), key(tb)
	parent, parentKey := authority, authorityKey
	server = &tls.Config{NextProtos: []string{"http/1.1"}}
	switch kind {
	case "ok":
	case "wrong-host":
		leaf.IPAddresses, leaf.DNSNames = nil, []string{"another.example.com"}
	case "expired":
		leaf.NotAfter = now.Add(-time.Hour)
	case "self-signed":
		parent, parentKey = leaf, leafKey
	case "max1.1":
		server.MinVersion, server.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	case "h2":
		server.NextProtos = []string{"h2"}
	case "client-certificate":
		server.ClientAuth = tls.RequireAnyClientCert
	case "huge-chain":
	default:
		tb.Fatalf("no TLS of the kind %q is known: ok, wrong-host, expired, self-signed, max1.1, huge-chain, client-certificate, h2, none", kind)
	}
	chain := [][]byte{sign(tb, leaf, parent, leafKey, parentKey)}
	if kind == "huge-chain" {
		authority.Subject.OrganizationalUnit = []string{strings.Repeat("x", 1<<10)}
		link := sign(tb, authority, authority, authorityKey, authorityKey)
		chain = append(chain, slices.Repeat([][]byte{link}, 200)...)
	}
	server.Certificates = []tls.Certificate{{Certificate: chain, PrivateKey: leafKey}}
	root, err := x509.ParseCertificate(sign(tb, authority, authority, authorityKey, authorityKey))
	if err != nil {
		tb.Fatal(err)
	}
	client = &tls.Config{RootCAs: x509.NewCertPool()}
	client.RootCAs.AddCert(root)
	return server, client
}

func key(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

func sign(tb testing.TB, c, parent *x509.Certificate, k, parentKey *ecdsa.PrivateKey) []byte {
	tb.Helper()
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &k.PublicKey, parentKey)
	if err != nil {
		tb.Fatal(err)
	}
	return der
}

// Certificates are a good receiver's TLS, and that of a client that trusts it.
func Certificates(tb testing.TB) (server, client *tls.Config) {
	tb.Helper()
	return certificates(tb, "ok")
}
