package discovery

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
)

// Limits of Kubernetes.
const (
	maxName  = 253 // of most objects (DNS-1123 subdomain)
	maxLabel = 63  // of a DNS-1123 label, and of a label's value
)

// objectName joins parts to the name of an object. A name that lost something on the way (other characters, or
// length) ends in a digest of the parts, so that two things never share a name by accident.
func objectName(parts ...string) string {
	raw := strings.Join(parts, "-")
	name := strings.Trim(strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '-', r == '.':
			return r
		case r >= 'A' && r <= 'Z':
			return r + ('a' - 'A')
		}
		return '-'
	}, raw), "-.")
	if strings.Contains(name, "..") || strings.Contains(name, ".-") || strings.Contains(name, "-.") {
		name = strings.ReplaceAll(name, ".", "-")
	}
	if name == raw && len(name) <= maxName {
		return name
	}
	return shorten(name, maxName-9) + "-" + digest(strings.Join(parts, "\x00"))
}

// dnsLabel makes a DNS-1123 label of a name. ECS allows capitals and underscores, which DNS does not.
func dnsLabel(s string) string {
	label := strings.Trim(strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '-':
			return r
		case r >= 'A' && r <= 'Z':
			return r + ('a' - 'A')
		}
		return '-'
	}, s), "-")
	if len(label) > maxLabel {
		return shorten(label, maxLabel-9) + "-" + digest(s)
	}
	return label
}

// labelValue makes the value of a label of a name.
func labelValue(s string) string {
	v := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_', r == '.':
			return r
		}
		return '-'
	}, s)
	trimmed := strings.Trim(v, "-_.")
	if trimmed == s && len(s) <= maxLabel {
		return s
	}
	return strings.Trim(shorten(trimmed, maxLabel-9)+"-"+digest(s), "-_.")
}

// shorten cuts a name without leaving a separator at its end.
func shorten(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	return strings.TrimRight(s, "-_.")
}

// digest returns eight hexadecimal digits that stand for s.
func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:4])
}

// isLabel reports whether s is a DNS-1123 label.
func isLabel(s string) bool { return len(s) <= maxLabel && isPart(s) }

// isSubdomain reports whether s is a DNS-1123 subdomain as Kubernetes means it: its parts may be longer than DNS allows.
func isSubdomain(s string) bool { return eachPart(s, isPart) }

// isHostname reports whether s is a host name that DNS allows too.
func isHostname(s string) bool { return eachPart(s, isLabel) }

func eachPart(s string, valid func(string) bool) bool {
	if len(s) > maxName {
		return false
	}
	for part := range strings.SplitSeq(s, ".") {
		if !valid(part) {
			return false
		}
	}
	return true
}

func isPart(s string) bool {
	if s == "" || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' {
			return false
		}
	}
	return true
}
