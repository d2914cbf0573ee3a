package __PACKAGE__;

import java.math.BigInteger;
import java.security.MessageDigest;
import java.util.Arrays;

/**
 * Verification of Ed25519 signatures after RFC 8032, section 5.1, which old versions of Android do not have. Nothing
 * here is secret, so that none of it needs to take the same time always. A point is (x, y).
 */
final class Ed25519 {
  private static final BigInteger ONE = BigInteger.ONE;
  private static final BigInteger P = ONE.shiftLeft(255).subtract(of(19));
  private static final BigInteger ORDER = ONE.shiftLeft(252).add(new BigInteger("27742317777372353535851937790883648493"));
  private static final BigInteger D = quotient(of(-121665), of(121666));
  private static final BigInteger[] BASE = point(quotient(of(4), of(5)), false);

  private Ed25519() {}

  static boolean verify(byte[] key, byte[] signature, byte[] message) throws Exception {
    if (signature.length != 64) return false;
    BigInteger[] a = decoded(key);
    BigInteger[] r = decoded(signature);
    BigInteger s = number(signature, 32, 64);
    if (a == null || r == null || s.compareTo(ORDER) >= 0) return false;
    MessageDigest digest = MessageDigest.getInstance("SHA-512");
    digest.update(signature, 0, 32);
    digest.update(key);
    BigInteger k = number(digest.digest(message), 0, 64).mod(ORDER);
    return Arrays.equals(times(s, BASE), add(r, times(k, a)));
  }

  /** Section 5.1.4 without extra coordinates: simpler, and slow enough for an attacker only. */
  private static BigInteger[] add(BigInteger[] p, BigInteger[] q) {
    BigInteger xx = p[0].multiply(q[0]);
    BigInteger yy = p[1].multiply(q[1]);
    BigInteger k = D.multiply(xx).multiply(yy);
    BigInteger x = p[0].multiply(q[1]).add(p[1].multiply(q[0]));
    return new BigInteger[] {quotient(x, ONE.add(k)), quotient(yy.add(xx), ONE.subtract(k))};
  }

  private static BigInteger[] times(BigInteger factor, BigInteger[] point) {
    BigInteger[] sum = {BigInteger.ZERO, ONE};
    for (int i = factor.bitLength(); i-- > 0; ) {
      sum = add(sum, sum);
      if (factor.testBit(i)) sum = add(sum, point);
    }
    return sum;
  }

  private static BigInteger[] decoded(byte[] bytes) {
    BigInteger value = number(bytes, 0, 32);
    BigInteger y = value.clearBit(255);
    return y.compareTo(P) < 0 ? point(y, value.testBit(255)) : null;
  }

  /** The point of the curve with this y and an odd or even x, null where there is none (section 5.1.3). */
  private static BigInteger[] point(BigInteger y, boolean isOdd) {
    BigInteger yy = y.multiply(y);
    BigInteger square = quotient(yy.subtract(ONE), D.multiply(yy).add(ONE));
    BigInteger x = square.modPow(P.shiftRight(3).add(ONE), P);
    if (!x.multiply(x).mod(P).equals(square)) x = x.multiply(of(2).modPow(P.shiftRight(2), P)).mod(P);
    if (!x.multiply(x).mod(P).equals(square) || (x.signum() == 0 && isOdd)) return null;
    return new BigInteger[] {x.testBit(0) == isOdd ? x : P.subtract(x), y};
  }

  private static BigInteger quotient(BigInteger a, BigInteger b) {
    return a.multiply(b.modInverse(P)).mod(P);
  }

  private static BigInteger of(long value) {
    return BigInteger.valueOf(value);
  }

  /** The number that bytes are, the lowest first. */
  private static BigInteger number(byte[] bytes, int from, int to) {
    BigInteger found = BigInteger.ZERO;
    for (int i = to; i-- > from; ) found = found.shiftLeft(8).add(of(bytes[i] & 0xFF));
    return found;
  }
}
