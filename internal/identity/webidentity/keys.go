package webidentity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
)

// Limits of a key set.
const (
	maxKeys       = 32
	minRSABits    = 2048
	maxRSABits    = 4096
	p384Bytes     = 48
	onlyExponent  = 65537
	onlyRSAModulo = "AQAB" // onlyExponent as a JWK has it
)

// publicKey is a key that an issuer signs with. Exactly one of the two is set, so that a key can only ever be used with
// the algorithm of its type.
type publicKey struct {
	rsa *rsa.PublicKey
	ec  *ecdsa.PublicKey
}

// verify checks a signature by the token's algorithm, which must be that of the key.
func (k publicKey) verify(t token) error {
	ok := false
	switch {
	case t.algorithm == rs256 && k.rsa != nil:
		sum := sha256.Sum256(t.signed)
		ok = rsa.VerifyPKCS1v15(k.rsa, crypto.SHA256, sum[:], t.signature) == nil
	case t.algorithm == es384 && k.ec != nil:
		if len(t.signature) == 2*p384Bytes { // not the DER form, which has more than one text for a signature
			sum := sha512.Sum384(t.signed)
			r, s := new(big.Int).SetBytes(t.signature[:p384Bytes]), new(big.Int).SetBytes(t.signature[p384Bytes:])
			ok = ecdsa.Verify(k.ec, sum[:], r, s)
		}
	default:
		return fmt.Errorf("key %.128q is not one for %s: %w", t.keyID, t.algorithm, ErrSignature)
	}
	if !ok {
		return fmt.Errorf("key %.128q: %w", t.keyID, ErrSignature)
	}
	return nil
}

// parseKeys reads a JWK set. A key that is of another kind or too weak is left out, so that AWS can add kinds; what is
// left must be unambiguous and at least one.
func parseKeys(raw []byte) (map[string]publicKey, error) {
	set, err := object(raw)
	if err != nil {
		return nil, fmt.Errorf("key set: %w", err)
	}
	var list []json.RawMessage
	if err := json.Unmarshal(set["keys"], &list); err != nil {
		return nil, errors.New("key set: no list of keys")
	}
	if len(list) > maxKeys {
		return nil, fmt.Errorf("key set: %d keys, at most %d are read", len(list), maxKeys)
	}
	keys := map[string]publicKey{}
	var left error
	for _, text := range list {
		id, key, err := parseKey(text)
		if err != nil {
			left = err
			continue
		}
		if _, twice := keys[id]; twice {
			return nil, fmt.Errorf("key set: two keys are named %.128q", id)
		}
		keys[id] = key
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("key set: none of its %d keys can be used: %w", len(list), left)
	}
	return keys, nil
}

func parseKey(raw json.RawMessage) (id string, key publicKey, err error) {
	fields, err := object(raw)
	if err != nil {
		return "", key, err
	}
	get := func(name string) string { s, _ := str(fields[name]); return s }
	id = get("kid")
	_, private := fields["d"]
	switch {
	case !keyIDPattern.MatchString(id):
		return "", key, errors.New("a key without an id")
	case get("use") != "sig":
		return "", key, fmt.Errorf("key %q is not said to be for signatures", id)
	case private:
		return "", key, fmt.Errorf("key %q is published with its private part", id)
	}
	want := map[string]string{"RSA": rs256, "EC": es384}[get("kty")]
	if _, named := fields["alg"]; want == "" || named && get("alg") != want {
		return "", key, fmt.Errorf("key %q is of a type that AWS does not sign with", id)
	}
	if want == rs256 {
		key.rsa, err = parseRSA(get("n"), get("e"))
	} else {
		key.ec, err = parseEC(get("crv"), get("x"), get("y"))
	}
	if err != nil {
		return "", publicKey{}, fmt.Errorf("key %q: %w", id, err)
	}
	return id, key, nil
}

func parseRSA(n, e string) (*rsa.PublicKey, error) {
	raw, err := decode(n)
	if err != nil || raw[0] == 0 {
		return nil, errors.New("the modulus is not in the one encoding that it has")
	}
	modulus := new(big.Int).SetBytes(raw)
	switch {
	case modulus.BitLen() < minRSABits || modulus.BitLen() > maxRSABits:
		return nil, fmt.Errorf("%d bits, want %d to %d", modulus.BitLen(), minRSABits, maxRSABits)
	case modulus.Bit(0) == 0:
		return nil, errors.New("the modulus is even")
	case e != onlyRSAModulo:
		return nil, errors.New("the exponent is not 65537")
	}
	return &rsa.PublicKey{N: modulus, E: onlyExponent}, nil
}

func parseEC(curve, x, y string) (*ecdsa.PublicKey, error) {
	if curve != "P-384" {
		return nil, errors.New("the curve is not P-384")
	}
	point := []byte{4} // uncompressed
	for _, text := range []string{x, y} {
		raw, err := decode(text)
		if err != nil || len(raw) != p384Bytes {
			return nil, errors.New("a coordinate has not 48 bytes")
		}
		point = append(point, raw...)
	}
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P384(), point)
	if err != nil {
		return nil, errors.New("the point is not on the curve")
	}
	return key, nil
}
