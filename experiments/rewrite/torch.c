// torch.c -- pytorch_model.bin as a plan: a zip archive whose members have their places
// before their bytes are known.
//
// Between two storages stands the next one's local header, so the header of such a shard is made of
// pieces. Check sums come last: when all ranks have written, one reads the storages and fills them
// in. Source: PKWARE's APPNOTE 6.3.10; PyTorch, torch/csrc caffe2/serialize/inline_container.cc
// (storages begin at multiples of 64, by an extra field "FB").
#include "experiments/rewrite/torch.h"

#include "quant/digest.h"
#include "quant/torch_write.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { ALIGN = 64, LOCAL_BYTES = 30, PADDING_ID = 0x4246, ZIP64_ID = 1 };
static const uint64_t narrow_max = 0xFFFFFFFF;

typedef struct Member {
    char name[96];
    const char *data; // NULL: a storage, whose bytes come later
    uint64_t bytes, local, place;
    uint32_t sum;
} Member;

typedef struct Archive {
    RewriteShard *shard;
    FILE *out;       // all pieces one after another
    uint64_t place;  // in the file
    uint64_t piece;  // where the piece at hand began in the file
    uint64_t before; // and in the header
    Member *member;
    int members;
} Archive;

static void put(Archive *archive, uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++)
        fputc((int)(value >> (8 * i) & 0xFF), archive->out);
    archive->place += (uint64_t)bytes;
}

static void put_bytes(Archive *archive, const void *data, uint64_t bytes)
{
    fwrite(data, 1, bytes, archive->out);
    archive->place += bytes;
}

static void end_piece(Archive *archive)
{
    RewriteShard *shard = archive->shard;
    uint64_t bytes = archive->place - archive->piece;
    shard->piece = realloc(shard->piece, (size_t)(shard->pieces + 1) * sizeof(*shard->piece));
    CHECK(shard->piece, EXIT_CODE_HARDWARE, "free host memory", "no host memory for a plan");
    shard->piece[shard->pieces++] = (RewritePiece){archive->piece, archive->before, bytes};
    archive->before += bytes;
}

static uint32_t narrow(uint64_t value)
{
    return value < narrow_max ? (uint32_t)value : (uint32_t)narrow_max;
}

// Signature to sizes, the same in local headers and in the directory.
static void put_common(Archive *archive, const Member *member, bool wide)
{
    put(archive, wide ? 45 : 20, 2); // the version that is needed
    put(archive, 0, 2);              // flags
    put(archive, 0, 2);              // stored
    put(archive, 0, 2);              // time: none, so that files are the same
    put(archive, 0x21, 2);           // 1 January 1980
    put(archive, member->sum, 4);
    put(archive, wide ? narrow_max : member->bytes, 4);
    put(archive, wide ? narrow_max : member->bytes, 4);
    put(archive, strlen(member->name), 2);
}

static void put_member(Archive *archive, Member *member)
{
    bool wide = member->bytes >= narrow_max;
    uint64_t name = strlen(member->name), wide_bytes = wide ? 20 : 0;
    uint64_t head = archive->place + LOCAL_BYTES + name + wide_bytes + 4;
    uint64_t padding = (ALIGN - head % ALIGN) % ALIGN;
    member->local = archive->place;
    if (member->data)
        member->sum = digest_crc32(0, member->data, member->bytes);
    put(archive, 0x04034B50, 4);
    put_common(archive, member, wide);
    put(archive, wide_bytes + 4 + padding, 2);
    put_bytes(archive, member->name, name);
    if (wide) {
        put(archive, ZIP64_ID, 2);
        put(archive, 16, 2);
        put(archive, member->bytes, 8);
        put(archive, member->bytes, 8);
    }
    put(archive, PADDING_ID, 2);
    put(archive, padding, 2);
    for (uint64_t i = 0; i < padding; i++)
        put(archive, 'Z', 1);
    member->place = archive->place;
    if (member->data) {
        put_bytes(archive, member->data, member->bytes);
        return;
    }
    end_piece(archive);
    archive->place += member->bytes;
    archive->piece = archive->place;
}

static void put_directory(Archive *archive)
{
    uint64_t start = archive->place;
    for (int i = 0; i < archive->members; i++) {
        const Member *member = &archive->member[i];
        bool wide = member->bytes >= narrow_max || member->local >= narrow_max;
        RewriteShard *shard = archive->shard;
        shard->member[i] = (RewriteMember){member->local + 14, archive->place + 16, member->place,
                                           member->bytes, member->data != NULL};
        put(archive, 0x02014B50, 4);
        put(archive, wide ? 45 : 20, 2);
        put_common(archive, member, wide);
        put(archive, wide ? 28 : 0, 2);
        put(archive, 0, 2); // comment
        put(archive, 0, 2); // disk
        put(archive, 0, 2);
        put(archive, 0, 4);
        put(archive, wide ? narrow_max : member->local, 4);
        put_bytes(archive, member->name, strlen(member->name));
        if (wide) {
            put(archive, ZIP64_ID, 2);
            put(archive, 24, 2);
            put(archive, member->bytes, 8);
            put(archive, member->bytes, 8);
            put(archive, member->local, 8);
        }
    }
    uint64_t end = archive->place, count = (uint64_t)archive->members;
    bool wide = start >= narrow_max || count >= 0xFFFF;
    if (wide) {
        put(archive, 0x06064B50, 4);
        put(archive, 44, 8);
        put(archive, 45, 2);
        put(archive, 45, 2);
        put(archive, 0, 8); // disks
        put(archive, count, 8);
        put(archive, count, 8);
        put(archive, end - start, 8);
        put(archive, start, 8);
        put(archive, 0x07064B50, 4);
        put(archive, 0, 4);
        put(archive, end, 8);
        put(archive, 1, 4);
    }
    put(archive, 0x06054B50, 4);
    put(archive, 0, 4);
    put(archive, count < 0xFFFF ? count : 0xFFFF, 2);
    put(archive, count < 0xFFFF ? count : 0xFFFF, 2);
    put(archive, narrow(end - start), 4);
    put(archive, narrow(start), 4);
    put(archive, 0, 2);
}

// ---- members of a shard ----

static Member *add_member(Archive *archive, const char *stem, const char *name, const char *data,
                          uint64_t bytes)
{
    Member *member = &archive->member[archive->members++];
    *member = (Member){.data = data, .bytes = bytes};
    snprintf(member->name, sizeof(member->name), "%s/%s", stem, name);
    return member;
}

static char *make_pickle(const Rewrite *rewrite, const RewriteShard *shard, uint64_t *bytes)
{
    TorchOutput *outputs = calloc((size_t)shard->count + 1, sizeof(*outputs));
    CHECK(outputs, EXIT_CODE_HARDWARE, "free host memory", "no host memory for a pickle");
    for (int i = 0; i < shard->count; i++) {
        const RewriteTensor *tensor = &rewrite->tensor[shard->first + i];
        outputs[i] = (TorchOutput){tensor->name, tensor->tensor,
                                   rewrite_is_quantised(tensor) ? &tensor->stored : NULL};
    }
    char *pickle = torch_pickle(outputs, shard->count, bytes);
    free(outputs);
    return pickle;
}

static void put_storages(Archive *archive, Rewrite *rewrite, const char *stem, Json *map)
{
    RewriteShard *shard = archive->shard;
    int key = 0;
    for (int i = shard->first; i < shard->first + shard->count; i++) {
        RewriteTensor *tensor = &rewrite->tensor[i];
        bool quantised = rewrite_is_quantised(tensor);
        json_set(map, tensor->name, json_text(shard->name));
        for (int role = 0; role < (quantised ? STORED_ROLES : 1); role++) {
            const Tensor *part = quantised ? &tensor->stored.part[role].tensor : &tensor->tensor;
            char name[32];
            if (quantised && !tensor->stored.part[role].present)
                continue;
            snprintf(name, sizeof(name), "data/%d", key++);
            Member *member = add_member(archive, stem, name, NULL, tensor_bytes(part));
            put_member(archive, member);
            tensor->place[role] = member->place;
        }
    }
}

bool rewrite_torch_header(Rewrite *rewrite, RewriteShard *shard, Json *map, Error *error)
{
    (void)error;
    char stem[64];
    uint64_t pickle_bytes = 0;
    size_t header_bytes = 0;
    char *pickle = make_pickle(rewrite, shard, &pickle_bytes);
    size_t most = (size_t)shard->count * STORED_ROLES + 8;
    Archive archive = {.shard = shard, .member = calloc(most, sizeof(Member))};
    shard->member = calloc(most, sizeof(*shard->member));
    archive.out = open_memstream(&shard->header, &header_bytes);
    CHECK(archive.out && archive.member && shard->member, EXIT_CODE_HARDWARE, "free host memory",
          "no host memory for a plan");
    snprintf(stem, sizeof(stem), "%.*s", (int)strcspn(shard->name, "."), shard->name);
    put_member(&archive, add_member(&archive, stem, "data.pkl", pickle, pickle_bytes));
    put_member(&archive, add_member(&archive, stem, ".format_version", "1", 1));
    put_member(&archive, add_member(&archive, stem, ".storage_alignment", "64", 2));
    put_member(&archive, add_member(&archive, stem, "byteorder", "little", 6));
    put_storages(&archive, rewrite, stem, map);
    put_member(&archive, add_member(&archive, stem, "version", "3\n", 2));
    put_directory(&archive);
    end_piece(&archive);
    CHECK(fclose(archive.out) == 0, EXIT_CODE_HARDWARE, "free host memory",
          "no host memory for a plan");
    shard->members = archive.members;
    shard->header_bytes = header_bytes;
    shard->bytes = archive.place;
    rewrite->bytes += shard->bytes;
    free(archive.member);
    free(pickle);
    return true;
}

static bool put_sum(int descriptor, const RewriteMember *member, Error *error)
{
    uint32_t sum;
    if (!digest_crc32_file(descriptor, member->place, member->bytes, &sum, error))
        return false;
    return (pwrite(descriptor, &sum, sizeof(sum), (off_t)member->local_sum) == sizeof(sum) &&
            pwrite(descriptor, &sum, sizeof(sum), (off_t)member->directory_sum) == sizeof(sum)) ||
           error_set(error, EXIT_CODE_IO, "check the disk", "cannot write: %s", strerror(errno));
}

bool rewrite_torch_finish(const RewriteShard *shard, const char *path, Error *error)
{
    int descriptor = open(path, O_RDWR | O_CLOEXEC);
    if (descriptor < 0)
        return error_set(error, EXIT_CODE_IO, "check the disk", "cannot open %.300s: %s", path,
                         strerror(errno));
    bool good = true;
    for (int i = 0; good && i < shard->members; i++)
        good = shard->member[i].known || put_sum(descriptor, &shard->member[i], error);
    close(descriptor);
    return good || error_prefix(error, "%.300s", path);
}
