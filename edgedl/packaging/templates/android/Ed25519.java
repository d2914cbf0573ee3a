package __PACKAGE__;

import java.math.BigInteger;
import java.security.GeneralSecurityException;
import java.security.MessageDigest;

/**
 * Verification of Ed25519 signatures after RFC 8032, section 5.1, which old versions of Android do not have. Nothing
 * here is secret, so that none of it needs to take the same time always. A point is (x, y, z, t), extended coordinates.
 */
final class Ed25519 {
  private static final BigInteger ONE = BigInteger.ONE;
  private static final BigInteger P = ONE.shiftLeft(255).subtract(of(19));
  private static final BigInteger ORDER = ONE.shiftLeft(252).add(new BigInteger("27742317777372353535851937790883648493"));
  private static final BigInteger D = of(-121665).multiply(of(121666).modInverse(P)).mod(P);
  private static final BigInteger ROOT = of(2).modPow(P.subtract(ONE).shiftRight(2), P);
  private static final BigInteger[] BASE = point(of(4).multiply(of(5).modInverse(P)).mod(P), false);

  private Ed25519() {}

  static boolean verify(byte[] key, byte[] signature, byte[] message) throws GeneralSecurityException {
    if (signature.length != 64 || key.length != 32) return false;
    BigInteger[] a = decoded(key, 0);
    BigInteger[] r = decoded(signature, 0);
    BigInteger s = number(signature, 32, 32);
    if (a == null || r == null || s.compareTo(ORDER) >= 0) return false;
    MessageDigest digest = MessageDigest.getInstance("SHA-512");
    digest.update(signature, 0, 32);
    digest.update(key);
    byte[] hash = digest.digest(message);
    BigInteger[] left = times(s, BASE);
    BigInteger[] right = add(r, times(number(hash, 0, 64).mod(ORDER), a));
    return same(left, right, 0) && same(left, right, 1);
  }

  private static boolean same(BigInteger[] a, BigInteger[] b, int axis) {
    return a[axis].multiply(b[2]).subtract(b[axis].multiply(a[2])).mod(P).signum() == 0;
  }

  private static BigInteger[] add(BigInteger[] p, BigInteger[] q) {
    BigInteger a = p[1].subtract(p[0]).multiply(q[1].subtract(q[0])).mod(P);
    BigInteger b = p[1].add(p[0]).multiply(q[1].add(q[0])).mod(P);
    BigInteger c = p[3].multiply(q[3]).multiply(D).shiftLeft(1).mod(P);
    BigInteger d = p[2].multiply(q[2]).shiftLeft(1).mod(P);
    BigInteger e = b.subtract(a);
    BigInteger f = d.subtract(c);
    BigInteger g = d.add(c);
    BigInteger h = b.add(a);
    return new BigInteger[] {product(e, f), product(g, h), product(f, g), product(e, h)};
  }

  private static BigInteger[] times(BigInteger factor, BigInteger[] point) {
    BigInteger[] sum = {BigInteger.ZERO, ONE, ONE, BigInteger.ZERO};
    for (int i = factor.bitLength() - 1; i >= 0; i--) {
      sum = add(sum, sum);
      if (factor.testBit(i)) sum = add(sum, point);
    }
    return sum;
  }

  private static BigInteger[] decoded(byte[] bytes, int at) {
    BigInteger value = number(bytes, at, 32);
    BigInteger y = value.clearBit(255);
    return y.compareTo(P) < 0 ? point(y, value.testBit(255)) : null;
  }

  /** The point of the curve with this y and an odd or even x, null where there is none (section 5.1.3). */
  private static BigInteger[] point(BigInteger y, boolean isOdd) {
    BigInteger square = product(y.multiply(y).subtract(ONE), D.multiply(y).multiply(y).add(ONE).modInverse(P));
    BigInteger x = square.modPow(P.add(of(3)).shiftRight(3), P);
    if (!product(x, x).equals(square)) x = product(x, ROOT);
    if (!product(x, x).equals(square) || (x.signum() == 0 && isOdd)) return null;
    if (x.testBit(0) != isOdd) x = P.subtract(x);
    return new BigInteger[] {x, y, ONE, product(x, y)};
  }

  private static BigInteger product(BigInteger a, BigInteger b) {
    return a.multiply(b).mod(P);
  }

  private static BigInteger of(long value) {
    return BigInteger.valueOf(value);
  }

  private static BigInteger number(byte[] bytes, int start, int length) {
    byte[] reversed = new byte[length];
    for (int i = 0; i < length; i++) reversed[i] = bytes[start + length - 1 - i];
    return new BigInteger(1, reversed);
  }
}
