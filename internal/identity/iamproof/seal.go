package iamproof

import (
	"crypto/ecdh"
	"crypto/hpke"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/isthmus-mesh/isthmus/internal/strictjson"
)

// keyBytes is the length of an X25519 public key (RFC 7748).
const keyBytes = 32

// OneTimeKey is the key pair of one request to the broker, to which the answer is sealed. The zero value opens nothing.
type OneTimeKey struct{ private *ecdh.PrivateKey }

// NewOneTimeKey makes a key pair.
func NewOneTimeKey() (OneTimeKey, error) {
	private, err := newKey()
	return OneTimeKey{private}, err
}

// Public returns the part of the key that travels, as it travels.
func (k OneTimeKey) Public() string { return keyText(k.private.PublicKey()) }

// CheckKey checks the public key of somebody else's request. The error wraps ErrMalformed.
func CheckKey(text string) error {
	_, err := parseKey(text)
	return err
}

// newKey makes the key pair of one proof.
func newKey() (*ecdh.PrivateKey, error) { return ecdh.X25519().GenerateKey(rand.Reader) }

func keyText(k *ecdh.PublicKey) string { return base64.StdEncoding.EncodeToString(k.Bytes()) }

// parseKey reads the public key of a proof. The spelling must be the one of the key, not just one that decodes to it: the
// text is what is bound. A key of low order, with which everybody would have the same secret, is refused.
func parseKey(text string) (*ecdh.PublicKey, error) {
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(raw) != keyBytes || base64.StdEncoding.EncodeToString(raw) != text {
		return nil, fmt.Errorf("key: %w", ErrMalformed)
	}
	public, err := ecdh.X25519().NewPublicKey(raw)
	if err != nil {
		return nil, fmt.Errorf("key: %w", ErrMalformed)
	}
	// Any private key finds a key of low order out (RFC 7748 section 6.1).
	one, err := ecdh.X25519().NewPrivateKey(append([]byte{1}, make([]byte, keyBytes-1)...))
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	if _, err := one.ECDH(public); err != nil {
		return nil, fmt.Errorf("key: %w", ErrMalformed)
	}
	return public, nil
}

// sealInfo ties a sealed answer to its purpose (RFC 9180 section 8.1).
const sealInfo = "isthmus-broker-v1 answer"

// sealed is the broker's answer on the wire.
type sealed struct {
	// Sealed is base64 of an HPKE message: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-128-GCM, mode base.
	Sealed string `json:"sealed"`
}

// Seal encrypts an answer to the one-time key of the proof that asked for it (RFC 9180). Only the process that made the
// proof can open it: a proof that was copied on its way, or from a log, buys nothing from any replica of the broker,
// however little the replicas know of each other.
func Seal(key string, answer TokenResponse) ([]byte, error) {
	public, err := parseKey(key)
	if err != nil {
		return nil, fmt.Errorf("seal the answer: %w", err)
	}
	to, err := hpke.NewDHKEMPublicKey(public)
	if err != nil {
		return nil, fmt.Errorf("seal the answer: %w", err)
	}
	plain, err := json.Marshal(answer)
	if err != nil {
		return nil, fmt.Errorf("seal the answer: %w", err)
	}
	message, err := hpke.Seal(to, hpke.HKDFSHA256(), hpke.AES128GCM(), []byte(sealInfo), plain)
	if err != nil {
		return nil, fmt.Errorf("seal the answer: %w", err)
	}
	return json.Marshal(sealed{base64.StdEncoding.EncodeToString(message)})
}

// Open decrypts an answer that was sealed to this proof. Only a proof that Sign returned can: the private key never
// leaves the process.
func (p Proof) Open(text []byte) (TokenResponse, error) { return OneTimeKey{p.private}.Open(text) }

// Open decrypts an answer that was sealed to this key.
func (k OneTimeKey) Open(text []byte) (TokenResponse, error) {
	if k.private == nil {
		return TokenResponse{}, errors.New("open the broker's answer: this is a copy of the proof, without its private key")
	}
	var s sealed
	if err := strictjson.Strings(text, map[string]*string{"sealed": &s.Sealed}); err != nil {
		return TokenResponse{}, fmt.Errorf("open the broker's answer: %w", err)
	}
	message, err := base64.StdEncoding.DecodeString(s.Sealed)
	if err != nil {
		return TokenResponse{}, errors.New("open the broker's answer: not base64")
	}
	key, err := hpke.NewDHKEMPrivateKey(k.private)
	if err != nil {
		return TokenResponse{}, fmt.Errorf("open the broker's answer: %w", err)
	}
	plain, err := hpke.Open(key, hpke.HKDFSHA256(), hpke.AES128GCM(), []byte(sealInfo), message)
	if err != nil {
		return TokenResponse{}, errors.New("open the broker's answer: it is not sealed to this proof")
	}
	var answer TokenResponse
	if err := json.Unmarshal(plain, &answer); err != nil {
		return TokenResponse{}, fmt.Errorf("read the broker's answer: %w", err)
	}
	return answer, nil
}
