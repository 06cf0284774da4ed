package awsserver

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
)

// isListMember knows the names that members of lists have in XML: member in AWS Query, item in EC2.
func isListMember(name string) bool { return name == "member" || name == "item" }

// cutXML does what cutJSON does to an answer of the Query protocols: of each outermost list it leaves as many members as keep
// says, and it drops the token or marker for the rest. An answer that it cannot read stays as it is.
func cutXML(body []byte, keep func(int) int) []byte {
	counts, err := countMembers(body)
	if err != nil {
		return body
	}
	var out bytes.Buffer
	written, list, member := 0, -1, 0
	err = walkXML(body, func(e element) {
		switch {
		case e.token:
			out.Write(body[written:e.from])
			written = e.to
		case e.member:
			if e.list != list {
				list, member = e.list, 0
			}
			if member >= keep(counts[list]) {
				out.Write(body[written:e.from])
				written = e.to
			}
			member++
		}
	})
	if err != nil {
		return body
	}
	out.Write(body[written:])
	return bytes.Replace(out.Bytes(), []byte("<IsTruncated>true</IsTruncated>"), []byte("<IsTruncated>false</IsTruncated>"), 1)
}

// countMembers returns how many members each outermost list has, by the number of the list.
func countMembers(body []byte) (map[int]int, error) {
	counts := map[int]int{}
	err := walkXML(body, func(e element) {
		if e.member {
			counts[e.list]++
		}
	})
	return counts, err
}

// element is a part of an answer between two offsets: a member of an outermost list, or the token for the next page.
type element struct {
	from, to      int
	list          int // which list of the answer it is in
	member, token bool
}

// walkXML calls f with the members of the outermost lists, and with tokens, in their order.
func walkXML(body []byte, f func(element)) error {
	dec := xml.NewDecoder(bytes.NewReader(body))
	depth, inside, list := 0, 0, 0 // inside is the depth of the element that is being skipped, 0 for none
	var e element
	for {
		from := int(dec.InputOffset())
		t, err := dec.Token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch t := t.(type) {
		case xml.StartElement:
			depth++
			name := t.Name.Local
			if inside == 0 && !isListMember(name) {
				list++ // every element may be a list; those that are none have no members
			}
			isToken := name == "nextToken" || name == "NextToken" || name == "Marker"
			if inside == 0 && (isListMember(name) || isToken) {
				inside, e = depth, element{from: from, list: list, member: !isToken, token: isToken}
			}
		case xml.EndElement:
			if depth == inside {
				e.to, inside = int(dec.InputOffset()), 0
				f(e)
			}
			depth--
		}
	}
}
