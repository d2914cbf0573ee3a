package __PACKAGE__;

import com.google.ai.edge.litert.Accelerator;
import java.io.ByteArrayOutputStream;
import java.io.File;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.OutputStream;
import java.nio.charset.StandardCharsets;
import java.security.GeneralSecurityException;
import java.security.MessageDigest;
import java.util.Base64;
import java.util.Enumeration;
import java.util.Iterator;
import java.util.zip.ZipEntry;
import java.util.zip.ZipFile;
import org.json.JSONArray;
import org.json.JSONException;
import org.json.JSONObject;

/** The folder of installed packages: one a manifest's hash, and the file "current" that names the one in use. */
final class Store {
  private static final String SIGNATURE = "manifest.intoto.jsonl";
  private static final String NAME = "[A-Za-z0-9_][A-Za-z0-9_.+-]*(/[A-Za-z0-9_][A-Za-z0-9_.+-]*)*";
  private static final long MOST_BYTES = 500_000_000;
  String fallback;
  private final File folder;
  private final File part;
  private final File pointer;
  private final Files bundled;
  private final byte[] key;

  Store(File folder, Files bundled, String key) {
    this.folder = new File(folder, bundled.folder);
    this.bundled = bundled;
    this.key = Base64.getDecoder().decode(key);
    part = new File(this.folder, "part");
    pointer = new File(this.folder, "current");
  }

  /** The installed package where it holds, else the bundled one, and then fallback says why. */
  Runner open(Accelerator accelerator) throws IOException, JSONException {
    fallback = null;
    try {
      if (pointer.isFile()) {
        byte[] hash = new Files(null, folder.getPath() + "/").read(pointer.getName());
        File home = new File(folder, new String(hash, StandardCharsets.US_ASCII));
        check(home);
        return new Runner(new Files(null, home.getPath() + "/"), accelerator);
      }
    } catch (Exception e) {
      fallback = String.valueOf(e.getMessage());
    }
    return new Runner(bundled, accelerator);
  }

  /** Checks a package on this device, and then makes it the installed one. */
  SelfTest install(File file, Accelerator accelerator) throws RejectedPackageException {
    try {
      String hash = unpack(file);
      Runner runner = new Runner(new Files(null, part.getPath() + "/"), accelerator);
      SelfTest tested = runner.selfTest();
      runner.close();
      check(tested.passed, "the self-test fails");
      swap(hash);
      return tested;
    } catch (Exception e) {
      throw new RejectedPackageException(file + ": " + e.getMessage());
    } finally {
      delete(part);
    }
  }

  /** Unpacks a package into part: one that is signed, unchanged, and of use to this app. The hash of its manifest. */
  private String unpack(File file) throws IOException, JSONException, GeneralSecurityException {
    delete(part);
    try (ZipFile zip = new ZipFile(file)) {
      String root = root(zip);
      byte[] text = read(zip, root + Files.MANIFEST);
      String hash = sha256(text);
      check(isSigned(read(zip, root + SIGNATURE), hash), "not signed with the key of this app");
      JSONObject manifest = new JSONObject(new String(text, StandardCharsets.UTF_8));
      checkFits(manifest);
      JSONObject files = manifest.getJSONObject("files");
      for (Iterator<String> names = files.keys(); names.hasNext(); ) {
        String name = names.next();
        check(name.matches(NAME), name + " is no plain file");
        byte[] bytes = read(zip, root + name);
        check(sha256(bytes).equals(files.getString(name)), name + " was changed");
        write(name, bytes);
      }
      write(Files.MANIFEST, text);
      return hash;
    }
  }

  /** Makes part the installed package: the one rename of "current" is the swap. */
  private void swap(String hash) throws IOException {
    File home = new File(folder, hash);
    delete(home);
    write(pointer.getName(), hash.getBytes(StandardCharsets.US_ASCII));
    File next = new File(folder, "next");
    boolean isDone = new File(part, pointer.getName()).renameTo(next) && part.renameTo(home) && next.renameTo(pointer);
    check(isDone, folder + " cannot be written");
    for (File each : folder.listFiles()) {
      if (!each.equals(home) && !each.equals(pointer)) delete(each);
    }
  }

  /** Throws where a package in a folder was changed, or this app has no use for it. */
  private void check(File home) throws IOException, JSONException, GeneralSecurityException {
    Files there = new Files(null, home.getPath() + "/");
    check(sha256(there.read(Files.MANIFEST)).equals(home.getName()), Files.MANIFEST + " was changed");
    JSONObject manifest = there.json(Files.MANIFEST);
    checkFits(manifest);
    JSONObject files = manifest.getJSONObject("files");
    for (Iterator<String> names = files.keys(); names.hasNext(); ) {
      String name = names.next();
      check(sha256(there.read(name)).equals(files.getString(name)), name + " was changed");
    }
  }

  void clear() {
    delete(folder);
  }

  private static void check(boolean holds, String problem) throws IOException {
    if (!holds) throw new IOException(problem);
  }

  private void checkFits(JSONObject manifest) throws IOException, JSONException {
    check(manifest.getString("manifest_version").startsWith("1."), "its manifest is of another kind");
    JSONObject ours = bundled.json(Files.MANIFEST);
    check(manifest.getString("name").equals(ours.getString("name")), "it is another model");
    int[] own = version(ours);
    int[] other = version(manifest);
    check(own[0] == other[0], "version " + other[0] + ".x, this app takes " + own[0] + ".x");
    boolean isOlder = other[1] < own[1] || (other[1] == own[1] && other[2] < own[2]);
    check(!isOlder, "older than the one that this app came with");
    for (String part : new String[] {"inputs", "outputs", "preprocessing"}) {
      check(shape(ours.getJSONArray(part)).equals(shape(manifest.getJSONArray(part))), "other " + part);
    }
  }

  /** What the app's code depends on: names, types and shapes of tensors, the kinds of steps. */
  private static String shape(JSONArray parts) throws JSONException {
    StringBuilder found = new StringBuilder();
    for (int i = 0; i < parts.length(); i++) {
      for (String key : new String[] {"op", "name", "dtype", "shape"}) {
        found.append(parts.getJSONObject(i).opt(key)).append(' ');
      }
    }
    return found.toString();
  }

  private static int[] version(JSONObject manifest) throws JSONException {
    String[] parts = manifest.getString("version").split("[.-]");
    return new int[] {Integer.parseInt(parts[0]), Integer.parseInt(parts[1]), Integer.parseInt(parts[2])};
  }

  /** Whether an in-toto statement in a DSSE envelope, signed for our key, is about the manifest of this hash. */
  private boolean isSigned(byte[] envelope, String hash) throws JSONException, GeneralSecurityException, IOException {
    JSONObject json = new JSONObject(new String(envelope, StandardCharsets.UTF_8));
    String type = json.getString("payloadType");
    byte[] payload = Base64.getDecoder().decode(json.getString("payload"));
    ByteArrayOutputStream message = new ByteArrayOutputStream();
    message.write(("DSSEv1 " + type.length() + " " + type + " " + payload.length + " ").getBytes(StandardCharsets.UTF_8));
    message.write(payload);
    byte[] signature = Base64.getDecoder().decode(json.getJSONArray("signatures").getJSONObject(0).getString("sig"));
    if (!Ed25519.verify(key, signature, message.toByteArray())) return false;
    JSONArray subjects = new JSONObject(new String(payload, StandardCharsets.UTF_8)).getJSONArray("subject");
    JSONObject first = subjects.getJSONObject(0);
    return first.getString("name").equals(Files.MANIFEST) && first.getJSONObject("digest").getString("sha256").equals(hash);
  }

  private static String root(ZipFile zip) throws IOException {
    for (Enumeration<? extends ZipEntry> entries = zip.entries(); entries.hasMoreElements(); ) {
      String name = "/" + entries.nextElement().getName();
      if (name.endsWith("/" + Files.MANIFEST)) return name.substring(1, name.length() - Files.MANIFEST.length());
    }
    throw new IOException("no package of edgedl");
  }

  private static byte[] read(ZipFile zip, String name) throws IOException {
    ZipEntry entry = zip.getEntry(name);
    check(entry != null, name + " is missing");
    return Files.all(zip.getInputStream(entry), MOST_BYTES);
  }

  private void write(String name, byte[] bytes) throws IOException {
    File file = new File(part, name);
    file.getParentFile().mkdirs();
    try (OutputStream out = new FileOutputStream(file)) {
      out.write(bytes);
    }
  }

  private static String sha256(byte[] bytes) throws GeneralSecurityException {
    byte[] digest = MessageDigest.getInstance("SHA-256").digest(bytes);
    StringBuilder hex = new StringBuilder();
    for (byte each : digest) hex.append(Character.forDigit(each >> 4 & 15, 16)).append(Character.forDigit(each & 15, 16));
    return hex.toString();
  }

  private static void delete(File file) {
    File[] inside = file.listFiles();
    if (inside != null) for (File each : inside) delete(each);
    file.delete();
  }
}
